#include "cpu/cam.h"

namespace fastcam::cpu {

template void cam_of<double>(const CamOperands&, const std::string&, bool, double, const Tensor&);

}  // namespace fastcam::cpu

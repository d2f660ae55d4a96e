#include "cpu/cam.h"

namespace fastcam::cpu {

template void cam_of<float>(const CamOperands&, const std::string&, bool, double, const Tensor&);

}  // namespace fastcam::cpu

// What an operator refuses, and the words for it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "operands/tensors.h"

namespace fastcam {

inline std::string shape_string(IntHeaderOnlyArrayRef shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

// Raises RuntimeError with the message, the rest of the arguments in a row.
template <class... Parts>
void check(bool condition, const Parts&... message) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::runtime_error(text.str());
}

inline void check_floating(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  check(
      type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16 ||
          type == ScalarType::Double,
      name, ": got dtype ", toString(type), ", expected float32, float16, bfloat16 or float64");
}

inline void check_together(
    const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  check(
      tensor.device() == other.device(), name, ": is on another device than ", other_name,
      "; move both to one device");
}

inline void check_same_type(
    const Tensor& tensor, const char* name, const Tensor& other, const char* other_name) {
  check(
      tensor.scalar_type() == other.scalar_type(), name, ": got dtype ",
      toString(tensor.scalar_type()), ", expected that of ", other_name, ", ",
      toString(other.scalar_type()));
}

}  // namespace fastcam

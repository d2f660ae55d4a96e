// What an operator refuses, and the words for it.
#pragma once

#include <cctype>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

#include "operands/tensors.h"

namespace fastcam {

inline std::string shape_string(IntHeaderOnlyArrayRef shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

// A dtype as Python names it
inline std::string dtype_name(ScalarType type) {
  constexpr std::pair<ScalarType, const char*> kOtherNames[] = {
      {ScalarType::Half, "float16"},
      {ScalarType::Float, "float32"},
      {ScalarType::Double, "float64"},
      {ScalarType::ComplexHalf, "complex32"},
      {ScalarType::ComplexFloat, "complex64"},
      {ScalarType::ComplexDouble, "complex128"},
      {ScalarType::Byte, "uint8"},
      {ScalarType::Char, "int8"},
      {ScalarType::Short, "int16"},
      {ScalarType::Int, "int32"},
      {ScalarType::Long, "int64"}};
  for (const auto& [other, name] : kOtherNames)
    if (type == other) return name;
  std::string name = toString(type);
  for (char& letter : name) letter = static_cast<char>(std::tolower(letter));
  return name;
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
      name, ": got dtype ", dtype_name(type), ", expected float32, float16, bfloat16 or float64");
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
      dtype_name(tensor.scalar_type()), ", expected that of ", other_name, ", ",
      dtype_name(other.scalar_type()));
}

}  // namespace fastcam

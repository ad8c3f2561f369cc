#include "model/gguf/types.h"

#include "common/check.h"

namespace retort::gguf {
namespace {

constexpr TensorTypeInfo kTensorTypes[] = {
    {TensorType::kF32, "F32", 1, 4},
    {TensorType::kF16, "F16", 1, 2},
    {TensorType::kQ4_0, "Q4_0", 32, 18},
    {TensorType::kQ4_1, "Q4_1", 32, 20},
    {TensorType::kQ5_0, "Q5_0", 32, 22},
    {TensorType::kQ5_1, "Q5_1", 32, 24},
    {TensorType::kQ8_0, "Q8_0", 32, 34},
    {TensorType::kQ8_1, "Q8_1", 32, 40},
    {TensorType::kQ2_K, "Q2_K", 256, 84},
    {TensorType::kQ3_K, "Q3_K", 256, 110},
    {TensorType::kQ4_K, "Q4_K", 256, 144},
    {TensorType::kQ5_K, "Q5_K", 256, 176},
    {TensorType::kQ6_K, "Q6_K", 256, 210},
    {TensorType::kQ8_K, "Q8_K", 256, 292},
    {TensorType::kIQ2_XXS, "IQ2_XXS", 256, 66},
    {TensorType::kIQ2_XS, "IQ2_XS", 256, 74},
    {TensorType::kIQ3_XXS, "IQ3_XXS", 256, 98},
    {TensorType::kIQ1_S, "IQ1_S", 256, 50},
    {TensorType::kIQ4_NL, "IQ4_NL", 32, 18},
    {TensorType::kIQ3_S, "IQ3_S", 256, 110},
    {TensorType::kIQ2_S, "IQ2_S", 256, 82},
    {TensorType::kIQ4_XS, "IQ4_XS", 256, 136},
    {TensorType::kI8, "I8", 1, 1},
    {TensorType::kI16, "I16", 1, 2},
    {TensorType::kI32, "I32", 1, 4},
    {TensorType::kI64, "I64", 1, 8},
    {TensorType::kF64, "F64", 1, 8},
    {TensorType::kIQ1_M, "IQ1_M", 256, 56},
    {TensorType::kBF16, "BF16", 1, 2},
    {TensorType::kTQ1_0, "TQ1_0", 256, 54},
    {TensorType::kTQ2_0, "TQ2_0", 256, 66},
    {TensorType::kMXFP4, "MXFP4", 32, 17},
};

struct ValueTypeInfo {
  ValueType type;
  const char* name;
  uint64_t bytes;
};
constexpr ValueTypeInfo kValueTypes[] = {
    {ValueType::kUint8, "uint8", 1},     {ValueType::kInt8, "int8", 1},     {ValueType::kUint16, "uint16", 2},
    {ValueType::kInt16, "int16", 2},     {ValueType::kUint32, "uint32", 4}, {ValueType::kInt32, "int32", 4},
    {ValueType::kFloat32, "float32", 4}, {ValueType::kBool, "bool", 1},     {ValueType::kString, "string", 0},
    {ValueType::kArray, "array", 0},     {ValueType::kUint64, "uint64", 8}, {ValueType::kInt64, "int64", 8},
    {ValueType::kFloat64, "float64", 8},
};

}  // namespace

const TensorTypeInfo* FindTensorType(uint32_t number) {
  for (const TensorTypeInfo& info : kTensorTypes) {
    if (static_cast<uint32_t>(info.type) == number) return &info;
  }
  return nullptr;
}

const TensorTypeInfo& InfoOf(TensorType type) {
  const TensorTypeInfo* info = FindTensorType(static_cast<uint32_t>(type));
  RETORT_CHECK(info != nullptr);
  return *info;
}

uint64_t BytesOf(ValueType type) {
  for (const ValueTypeInfo& info : kValueTypes) {
    if (info.type == type) return info.bytes;
  }
  return 0;
}

const char* NameOf(ValueType type) {
  for (const ValueTypeInfo& info : kValueTypes) {
    if (info.type == type) return info.name;
  }
  return "no type";
}

}  // namespace retort::gguf

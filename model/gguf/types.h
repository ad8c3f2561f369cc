// What the numbers in a GGUF file mean: the types of tensors and of metadata values.
#pragma once

#include <cstdint>

#include "absl/strings/string_view.h"

namespace retort::gguf {

inline constexpr uint32_t kDefaultAlignment = 32;  // of tensor data, where general.alignment says nothing

// Values as in ggml's enum; those that no longer exist are left out.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ8_1 = 9,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kQ8_K = 15,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
};

// A row is a whole number of blocks; a block of `block_elements` values takes `block_bytes`.
struct TensorTypeInfo {
  TensorType type;
  const char* name;
  int64_t block_elements;
  int64_t block_bytes;
};

// Null for a number that is no type.
const TensorTypeInfo* FindTensorType(uint32_t number);
// Of a type that exists.
const TensorTypeInfo& InfoOf(TensorType type);

enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

// Bytes of one value; 0 for strings, arrays and numbers that are no type.
uint64_t BytesOf(ValueType type);
const char* NameOf(ValueType type);

// llama.cpp's general.file_type.
enum class FileType : uint32_t { kF32 = 0, kF16 = 1, kQ8_0 = 7, kQ4_K_M = 15, kBF16 = 32 };

// tokenizer.ggml.token_type.
enum class TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

}  // namespace retort::gguf

// A frozen matrix in 4 or 8 bits, in the layout that bitsandbytes keeps.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <array>
#include <memory>

namespace retort {

enum class QuantType { kNf4, kFp4, kInt8 };

// "nf4", "fp4", "int8".
const char* QuantTypeName(QuantType type);
// Of a 4-bit type.
const std::array<float, 16>& CodesOf(QuantType type);

// The scales of a 4-bit matrix, themselves quantised ("double quantisation"): scale i is codebook[code i] *
// scales[i / block] + offset.
struct NestedScales {
  at::Tensor scales;    // [ceil(blocks / block)], f32
  at::Tensor codebook;  // [256], f32
  int64_t block = 256;
  float offset = 0.0f;
};

// 4 bits: blocks of `block` values lie one after the other through the rows, whatever their length; value i is
// CodesOf(type)[code i] * scale[i / block]. 8 bits: value = code * scale of its row / 127. All tensors are on one
// device. Not written to once made.
struct QuantizedMatrix {
  QuantType type = QuantType::kNf4;
  int64_t rows = 0;
  int64_t columns = 0;
  at::Tensor codes;   // 4 bits: [ceil(rows * columns / 2)], uint8, the first of two in the high half; else [rows,
                      // columns], int8
  at::Tensor scales;  // 4 bits: [blocks], f32, or uint8 where there are nested ones; else [rows], f32
  int64_t block = 64;
  NestedScales nested;                                    // scales undefined: there are none
  c10::ScalarType source_dtype = c10::ScalarType::Float;  // of the weight that was quantised

  int64_t numel() const { return rows * columns; }
  int64_t blocks() const { return (numel() + block - 1) / block; }
  bool double_quant() const { return nested.scales.defined(); }
  uint64_t bytes() const;
};

using SharedQuantizedMatrix = std::shared_ptr<const QuantizedMatrix>;

// The same on another device.
QuantizedMatrix ToDevice(const QuantizedMatrix& matrix, c10::Device device);

// [rows, columns] of `dtype` (f32, bf16, f16) on the matrix's device: computed in f32, rounded once, as bitsandbytes
// does; on a GPU through the plug-in's kernels where it is there, with the same bits.
at::Tensor Dequantise(const QuantizedMatrix& matrix, c10::ScalarType dtype);

// The scales of a 4-bit matrix as they are multiplied by: [blocks], f32, on the matrix's device.
at::Tensor BlockScales(const QuantizedMatrix& matrix);

}  // namespace retort

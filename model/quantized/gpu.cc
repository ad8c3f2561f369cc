#include "model/quantized/gpu.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "common/check.h"
#include "model/kernels/kernel_plugin.h"
#include "model/quantized/codebooks.h"
#include "model/quantized/gpu_plugin.h"

namespace retort {
namespace {

// Null: there are none for the device.
const RetortQuantFunctions* KernelsFor(c10::Device device) {
  if (!device.is_cuda()) return nullptr;
  static const auto* const functions =
      LoadKernels<RetortQuantFunctions>("libretort_quant.so", "RetortQuantPlugin", "quantisation");
  if (functions == nullptr || functions->supports(device.index()) != 0) return nullptr;
  return functions;
}

int TypeOf(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case c10::ScalarType::BFloat16:
      return RETORT_QUANT_BF16;
    case c10::ScalarType::Half:
      return RETORT_QUANT_F16;
    default:
      return RETORT_QUANT_F32;
  }
}

void Check(const RetortQuantFunctions& kernels, int error, const char* what) {
  TORCH_CHECK(error == 0, what, ": ", kernels.error_text(error));
}

}  // namespace

bool DequantiseOnGpu(const QuantizedMatrix& matrix, at::Tensor& out) {
  const RetortQuantFunctions* kernels = KernelsFor(out.device());
  if (kernels == nullptr) return false;
  const c10::Device device = out.device();
  if (matrix.type == QuantType::kInt8) {
    Check(*kernels,
          kernels->dequantise_int8(device.index(), matrix.codes.const_data_ptr<int8_t>(),
                                   matrix.scales.const_data_ptr<float>(), matrix.rows, matrix.columns,
                                   out.mutable_data_ptr(), TypeOf(out), StreamOf(device)),
          "dequantise int8");
    return true;
  }
  RetortQuant4Bit argument = {};
  argument.codes = matrix.codes.const_data_ptr<uint8_t>();
  argument.scales = matrix.scales.const_data_ptr();
  if (matrix.double_quant()) {
    argument.nested_scales = matrix.nested.scales.const_data_ptr<float>();
    argument.nested_codebook = matrix.nested.codebook.const_data_ptr<float>();
    argument.nested_offset = matrix.nested.offset;
    argument.nested_block = matrix.nested.block;
  }
  argument.block = matrix.block;
  argument.count = matrix.numel();
  std::copy(CodesOf(matrix.type).begin(), CodesOf(matrix.type).end(), argument.table);
  Check(*kernels,
        kernels->dequantise_4bit(device.index(), &argument, out.mutable_data_ptr(), TypeOf(out), StreamOf(device)),
        "dequantise 4 bits");
  return true;
}

bool Quantise4BitOnGpu(const at::Tensor& weight, const QuantiseOptions& options, at::Tensor& codes,
                       at::Tensor& scales) {
  const RetortQuantFunctions* kernels = KernelsFor(weight.device());
  if (kernels == nullptr) return false;
  const Ordered4Bit ordered = OrderOf(options.type);
  Check(*kernels,
        kernels->quantise_4bit(weight.device().index(), weight.const_data_ptr(), TypeOf(weight), weight.numel(),
                               options.block, ordered.bounds.data(), ordered.codes.data(),
                               codes.mutable_data_ptr<uint8_t>(), scales.mutable_data_ptr<float>(),
                               StreamOf(weight.device())),
        "quantise to 4 bits");
  return true;
}

bool QuantiseRowsOnGpu(const at::Tensor& half, at::Tensor& codes, at::Tensor& scales) {
  const RetortQuantFunctions* kernels = KernelsFor(half.device());
  if (kernels == nullptr) return false;
  RETORT_CHECK(half.scalar_type() == at::kHalf);
  Check(*kernels,
        kernels->quantise_int8(half.device().index(), half.const_data_ptr(), half.size(0), half.size(1),
                               codes.mutable_data_ptr<int8_t>(), scales.mutable_data_ptr<float>(),
                               StreamOf(half.device())),
        "quantise to int8");
  return true;
}

}  // namespace retort

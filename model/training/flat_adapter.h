// A LoRA adapter's numbers in one flat f32 buffer, as an optimizer wants them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/lora.h"
#include "model/training_model.h"

namespace retort {

// One adapted linear module. Offsets are in elements of the flat buffers.
struct AdapterSlot {
  std::string name;   // "model.layers.0.self_attn.q_proj"
  int64_t index = 0;  // in the order of names; keys the dropout mask
  int64_t in_features = 0;
  int64_t out_features = 0;
  int64_t a_offset = 0;  // [r, in_features]
  int64_t b_offset = 0;  // [out_features, r]
};

class FlatAdapter {
 public:
  // Errors: kInvalidArgument (a module that the model lacks, or shapes that contradict it).
  static absl::StatusOr<FlatAdapter> Create(const ModelConfig& model, const LoraAdapter& adapter, c10::Device device);

  const std::vector<ParameterSlice>& parameters() const { return parameters_; }
  at::Tensor& flat() { return flat_; }
  const at::Tensor& flat() const { return flat_; }
  int64_t rank() const { return config_.r; }
  double scaling() const { return config_.lora_alpha / static_cast<double>(config_.r); }

  // nullptr when the module has no adapter. Lives as long as this.
  const AdapterSlot* Find(absl::string_view module) const;
  // Views into `buffer`, which is laid out as flat().
  at::Tensor A(const AdapterSlot& slot, const at::Tensor& buffer) const;  // [r, in_features]
  at::Tensor B(const AdapterSlot& slot, const at::Tensor& buffer) const;  // [out_features, r]

  LoraAdapter Export() const;

 private:
  LoraConfig config_;
  std::vector<AdapterSlot> slots_;  // ordered by name
  std::vector<ParameterSlice> parameters_;
  at::Tensor flat_;  // [numel], f32
};

}  // namespace retort

// An adapter's trained numbers in one flat f32 buffer, as an optimizer wants them.
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

// One adapted module. Offsets are in elements of the flat buffers.
struct AdapterSlot {
  std::string name;   // "model.layers.0.self_attn.q_proj"
  int64_t index = 0;  // in the order of names; keys the dropout mask
  int64_t in_features = 0;
  int64_t out_features = 0;
  int64_t experts = 0;  // above 0: stacked experts
  int64_t rank = 0;     // rows of A: with stacked experts, of all of them
  double scaling = 0.0;
  int64_t a_offset = 0;           // [rank, in_features]
  int64_t b_offset = 0;           // [out_features, rank]
  int64_t magnitude_offset = -1;  // [out_features]; -1: no DoRA
};

// A tensor of the model that is trained whole.
struct FullSlot {
  std::string name;  // in the model's files
  std::vector<int64_t> shape;
  int64_t offset = 0;
};

class FlatAdapter {
 public:
  // Errors: kInvalidArgument (a module that the model lacks, or shapes that contradict it).
  static absl::StatusOr<FlatAdapter> Create(const ModelConfig& model, const LoraAdapter& adapter, c10::Device device);

  const std::vector<ParameterSlice>& parameters() const { return parameters_; }
  at::Tensor& flat() { return flat_; }
  const at::Tensor& flat() const { return flat_; }
  const LoraConfig& config() const { return frozen_.config; }

  // Whether there is nothing but A and B of linear modules in layers.
  bool low_rank() const;
  // Whether moreover every module has one rank and one scaling.
  bool plain() const;
  // Those of a plain adapter.
  int64_t rank() const { return slots_.front().rank; }
  double scaling() const { return slots_.front().scaling; }

  const std::vector<AdapterSlot>& slots() const { return slots_; }
  const std::vector<FullSlot>& full() const { return full_; }
  // nullptr when the module has no adapter. Lives as long as this.
  const AdapterSlot* Find(absl::string_view module) const;
  // Views into `buffer`, which is laid out as flat().
  at::Tensor A(const AdapterSlot& slot, const at::Tensor& buffer) const;          // [rank, in_features]
  at::Tensor B(const AdapterSlot& slot, const at::Tensor& buffer) const;          // [out_features, rank]
  at::Tensor Magnitude(const AdapterSlot& slot, const at::Tensor& buffer) const;  // [out_features]
  at::Tensor Full(const FullSlot& slot, const at::Tensor& buffer) const;

  LoraAdapter Export() const;

 private:
  LoraAdapter frozen_;              // what is not trained: config, frozen parts, replaced embeddings
  std::vector<AdapterSlot> slots_;  // ordered by name
  std::vector<FullSlot> full_;      // ordered by name
  std::vector<ParameterSlice> parameters_;
  at::Tensor flat_;  // [numel], f32
};

}  // namespace retort

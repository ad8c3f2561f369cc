#include "model/training/flat_adapter.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"

namespace retort {
namespace {

absl::Status CheckPair(const std::string& name, const LoraPair& pair, const LinearModule& module, int64_t rank) {
  const bool fits = pair.a.dim() == 2 && pair.b.dim() == 2 && pair.a.size(0) == rank && pair.b.size(1) == rank &&
                    pair.a.size(1) == module.in_features && pair.b.size(0) == module.out_features;
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("adapter module ", name, ": lora_A and lora_B must be [", rank, ", ",
                                                 module.in_features, "] and [", module.out_features, ", ", rank,
                                                 "] for this model; was the adapter made for another base?"));
}

}  // namespace

absl::StatusOr<FlatAdapter> FlatAdapter::Create(const ModelConfig& model, const LoraAdapter& adapter,
                                                c10::Device device) {
  if (adapter.modules.empty()) return absl::InvalidArgumentError("adapter holds no modules: nothing to train");
  std::map<std::string, LinearModule> linears;
  for (LinearModule& module : LinearModules(model)) linears.emplace(module.name, module);

  FlatAdapter flat;
  flat.config_ = adapter.config;
  int64_t numel = 0;
  for (const auto& [name, pair] : adapter.modules) {
    const auto module = linears.find(name);
    if (module == linears.end()) {
      return absl::InvalidArgumentError(absl::StrCat("adapter module ", name, ": the model has no such linear module"));
    }
    if (absl::Status fits = CheckPair(name, pair, module->second, adapter.config.r); !fits.ok()) return fits;
    AdapterSlot slot{.name = name,
                     .index = static_cast<int64_t>(flat.slots_.size()),
                     .in_features = module->second.in_features,
                     .out_features = module->second.out_features,
                     .a_offset = numel,
                     .b_offset = numel + pair.a.numel()};
    numel += pair.a.numel() + pair.b.numel();
    flat.parameters_.push_back(
        {absl::StrCat(name, ".lora_A"), {adapter.config.r, slot.in_features}, slot.a_offset, pair.a.numel()});
    flat.parameters_.push_back(
        {absl::StrCat(name, ".lora_B"), {slot.out_features, adapter.config.r}, slot.b_offset, pair.b.numel()});
    flat.slots_.push_back(std::move(slot));
  }
  flat.flat_ = at::empty({numel}, at::TensorOptions().dtype(at::kFloat).device(device));
  for (const AdapterSlot& slot : flat.slots_) {
    const LoraPair& pair = adapter.modules.at(slot.name);
    flat.A(slot, flat.flat_).copy_(pair.a);
    flat.B(slot, flat.flat_).copy_(pair.b);
  }
  return flat;
}

const AdapterSlot* FlatAdapter::Find(absl::string_view module) const {
  const auto slot =
      std::lower_bound(slots_.begin(), slots_.end(), module,
                       [](const AdapterSlot& a, absl::string_view b) { return absl::string_view(a.name) < b; });
  return slot != slots_.end() && slot->name == module ? &*slot : nullptr;
}

at::Tensor FlatAdapter::A(const AdapterSlot& slot, const at::Tensor& buffer) const {
  return buffer.narrow(0, slot.a_offset, config_.r * slot.in_features).view({config_.r, slot.in_features});
}

at::Tensor FlatAdapter::B(const AdapterSlot& slot, const at::Tensor& buffer) const {
  return buffer.narrow(0, slot.b_offset, slot.out_features * config_.r).view({slot.out_features, config_.r});
}

LoraAdapter FlatAdapter::Export() const {
  LoraAdapter adapter{.config = config_};
  const at::Tensor host = flat_.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  for (const AdapterSlot& slot : slots_) {
    adapter.modules[slot.name] = {A(slot, host).clone(), B(slot, host).clone()};
  }
  return adapter;
}

}  // namespace retort

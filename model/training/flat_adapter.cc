#include "model/training/flat_adapter.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace retort {
namespace {

absl::Status CheckPair(const std::string& name, const LoraPair& pair, const LoraModule& module, const AdapterSlot& slot,
                       bool dora) {
  const bool fits = pair.a.dim() == 2 && pair.b.dim() == 2 && pair.a.size(0) == slot.rank &&
                    pair.b.size(1) == slot.rank && pair.a.size(1) == module.in_features &&
                    pair.b.size(0) == module.out_features;
  if (!fits) {
    return absl::InvalidArgumentError(absl::StrCat(
        "adapter module ", name, ": lora_A and lora_B must be [", slot.rank, ", ", module.in_features, "] and [",
        module.out_features, ", ", slot.rank, "] for this model; was the adapter made for another base?"));
  }
  if (dora && (!pair.magnitude.defined() || pair.magnitude.sizes() != at::IntArrayRef({module.out_features}))) {
    return absl::InvalidArgumentError(
        absl::StrCat("adapter module ", name, ": lora_magnitude_vector must be [", module.out_features, "]"));
  }
  return absl::OkStatus();
}

// As transformers' Trainer groups parameters: biases and norms do not decay.
bool Decays(const std::string& name) {
  const std::string lower = absl::AsciiStrToLower(name);
  for (const char* word : {"bias", "layernorm", "rmsnorm"}) {
    if (absl::StrContains(lower, word)) return false;
  }
  for (const absl::string_view part : absl::StrSplit(lower, '.')) {
    if (part == "norm" || absl::EndsWith(part, "_norm")) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<FlatAdapter> FlatAdapter::Create(const ModelConfig& model, const LoraAdapter& adapter,
                                                c10::Device device) {
  if (adapter.modules.empty()) return absl::InvalidArgumentError("adapter holds no modules: nothing to train");
  std::map<std::string, LoraModule> known;
  for (LoraModule& module : AdaptableModules(model)) known.emplace(module.name, module);

  FlatAdapter flat;
  flat.frozen_.config = adapter.config;
  flat.frozen_.replaced = adapter.replaced;
  int64_t numel = 0;
  const auto add = [&](std::string name, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    const bool decay = Decays(name);
    flat.parameters_.push_back({std::move(name), std::move(shape), numel, count, decay});
    return std::exchange(numel, numel + count);
  };
  for (const auto& [name, pair] : adapter.modules) {
    const auto module = known.find(name);
    if (module == known.end()) {
      return absl::InvalidArgumentError(absl::StrCat("adapter module ", name, ": the model has no such linear module"));
    }
    AdapterSlot slot{.name = name,
                     .index = static_cast<int64_t>(flat.slots_.size()),
                     .in_features = module->second.in_features,
                     .out_features = module->second.out_features,
                     .experts = module->second.experts,
                     .rank = RankOf(adapter.config, name) * std::max<int64_t>(1, module->second.experts),
                     .scaling = ScalingOf(adapter.config, name)};
    if (absl::Status fits = CheckPair(name, pair, module->second, slot, adapter.config.use_dora); !fits.ok())
      return fits;
    slot.a_offset = add(absl::StrCat(name, ".lora_A"), {slot.rank, slot.in_features});
    slot.b_offset = add(absl::StrCat(name, ".lora_B"), {slot.out_features, slot.rank});
    if (adapter.config.use_dora) {
      slot.magnitude_offset = add(absl::StrCat(name, ".lora_magnitude_vector"), {slot.out_features});
    }
    flat.frozen_.modules[name] = {.frozen_a = pair.frozen_a, .frozen_b = pair.frozen_b};
    flat.slots_.push_back(std::move(slot));
  }
  std::map<std::string, std::vector<int64_t>> wanted;
  for (auto& [name, shape] : FullTensors(model, adapter.config)) wanted.emplace(name, shape);
  for (const auto& [name, tensor] : adapter.full) {
    const auto expected = wanted.find(name);
    if (expected == wanted.end() || tensor.sizes() != at::IntArrayRef(expected->second)) {
      return absl::InvalidArgumentError(absl::StrCat("adapter tensor ", name, " [", absl::StrJoin(tensor.sizes(), ", "),
                                                     "] does not fit this model and the adapter's config"));
    }
    flat.full_.push_back({name, expected->second, add(name, expected->second)});
    wanted.erase(expected);
  }
  if (!wanted.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("adapter lacks ", wanted.begin()->first, ", which is to be trained"));
  }
  flat.flat_ = at::empty({numel}, at::TensorOptions().dtype(at::kFloat).device(device));
  for (const AdapterSlot& slot : flat.slots_) {
    const LoraPair& pair = adapter.modules.at(slot.name);
    flat.A(slot, flat.flat_).copy_(pair.a);
    flat.B(slot, flat.flat_).copy_(pair.b);
    if (slot.magnitude_offset >= 0) flat.Magnitude(slot, flat.flat_).copy_(pair.magnitude);
  }
  for (const FullSlot& slot : flat.full_) flat.Full(slot, flat.flat_).copy_(adapter.full.at(slot.name));
  return flat;
}

bool FlatAdapter::low_rank() const {
  if (!full_.empty()) return false;
  return std::all_of(slots_.begin(), slots_.end(), [](const AdapterSlot& slot) {
    const bool in_layers = slot.name != kEmbeddingModule && slot.name != kHeadModule;
    return in_layers && slot.experts == 0 && slot.magnitude_offset < 0;
  });
}

bool FlatAdapter::plain() const {
  return low_rank() && std::all_of(slots_.begin(), slots_.end(), [this](const AdapterSlot& slot) {
           return slot.rank == rank() && slot.scaling == scaling();
         });
}

const AdapterSlot* FlatAdapter::Find(absl::string_view module) const {
  const auto slot =
      std::lower_bound(slots_.begin(), slots_.end(), module,
                       [](const AdapterSlot& a, absl::string_view b) { return absl::string_view(a.name) < b; });
  return slot != slots_.end() && slot->name == module ? &*slot : nullptr;
}

at::Tensor FlatAdapter::A(const AdapterSlot& slot, const at::Tensor& buffer) const {
  return buffer.narrow(0, slot.a_offset, slot.rank * slot.in_features).view({slot.rank, slot.in_features});
}

at::Tensor FlatAdapter::B(const AdapterSlot& slot, const at::Tensor& buffer) const {
  return buffer.narrow(0, slot.b_offset, slot.out_features * slot.rank).view({slot.out_features, slot.rank});
}

at::Tensor FlatAdapter::Magnitude(const AdapterSlot& slot, const at::Tensor& buffer) const {
  return buffer.narrow(0, slot.magnitude_offset, slot.out_features);
}

at::Tensor FlatAdapter::Full(const FullSlot& slot, const at::Tensor& buffer) const {
  return buffer.narrow(0, slot.offset, c10::multiply_integers(slot.shape)).view(slot.shape);
}

LoraAdapter FlatAdapter::Export() const {
  LoraAdapter adapter = frozen_;
  const at::Tensor host = flat_.to(at::kCPU, at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  for (const AdapterSlot& slot : slots_) {
    LoraPair& pair = adapter.modules[slot.name];
    pair.a = A(slot, host).clone();
    pair.b = B(slot, host).clone();
    if (slot.magnitude_offset >= 0) pair.magnitude = Magnitude(slot, host).clone();
  }
  for (const FullSlot& slot : full_) adapter.full[slot.name] = Full(slot, host).clone();
  return adapter;
}

}  // namespace retort

#include "model/convert/gguf_source.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "model/gguf/quants.h"
#include "model/parallel_for.h"
#include "model/torch_status.h"

namespace retort {
namespace {

using gguf::Layout;
using gguf::TensorInfo;
using gguf::TensorType;

constexpr int64_t kElementsPerTask = 1 << 16;  // a multiple of every block

c10::ScalarType DtypeOf(TensorType type) {
  if (type == TensorType::kF16) return c10::ScalarType::Half;
  if (type == TensorType::kBF16) return c10::ScalarType::BFloat16;
  return c10::ScalarType::Float;
}

// Tensors that hold no weights: the config says what they say.
bool IsPartOfConfig(absl::string_view name) {
  return name == "rope_freqs.weight" || name == "rope_factors_long.weight" || name == "rope_factors_short.weight" ||
         absl::EndsWith(name, ".attn_rot_embd.weight");
}

// Multi-token prediction, which no layer of the decoder is.
bool IsSetAside(absl::string_view name) { return absl::StrContains(name, ".nextn."); }

}  // namespace

absl::StatusOr<std::unique_ptr<GgufSource>> GgufSource::Open(const std::string& path) {
  std::unique_ptr<GgufSource> source(new GgufSource());
  ASSIGN_OR_RETURN(source->file_, gguf::File::Open(path));
  ASSIGN_OR_RETURN(source->config_, gguf::ConfigFromGguf(*source->file_));
  ASSIGN_OR_RETURN(source->geometry_, gguf::GeometryOf(source->config_, path));
  source->family_ = gguf::FindFamily(*source->file_->String("general.architecture"));
  RETURN_IF_ERROR(source->AddTensors());
  return source;
}

absl::Status GgufSource::AddTensors() {
  for (const TensorInfo& tensor : file_->tensors()) {
    if (IsPartOfConfig(tensor.name) || IsSetAside(tensor.name)) continue;
    const auto match = gguf::MatchGgufName(*family_, tensor.name);
    if (!match) {
      return absl::UnimplementedError(absl::StrCat(file_->path(), ": tensor \"", tensor.name, "\" has no place in a ",
                                                   family_->architecture, " model"));
    }
    if (match->layer >= geometry_.layers) {
      return absl::InvalidArgumentError(absl::StrCat(file_->path(), ": tensor \"", tensor.name,
                                                     "\", but the file says ", "that the model has ", geometry_.layers,
                                                     " layers"));
    }
    if (!gguf::CanDequantise(tensor.type)) {
      return absl::UnimplementedError(absl::StrCat(file_->path(), ": tensor \"", tensor.name, "\" has type ",
                                                   gguf::InfoOf(tensor.type).name, ", which is not supported"));
    }
    RETURN_IF_ERROR(AddTensor(tensor, *match));
  }
  for (const auto& [name, entry] : entries_) RETURN_IF_ERROR(Check(name, entry));
  return absl::OkStatus();
}

absl::Status GgufSource::AddTensor(const TensorInfo& tensor, const gguf::RuleMatch& match) {
  const Layout layout = match.rule->layout;
  if (layout == Layout::kExperts) {
    for (int64_t expert = 0; expert < geometry_.experts; ++expert) {
      entries_[gguf::Fill(match.rule->hf, match.layer, expert)] = {&tensor, nullptr, layout, expert};
    }
    return absl::OkStatus();
  }
  Entry& entry = entries_[gguf::Fill(match.rule->hf, match.layer)];
  if (layout == Layout::kValueOfKvB) {
    entry.values = &tensor;
    entry.layout = Layout::kKeyOfKvB;
  } else if (layout == Layout::kKeyOfKvB || entry.layout != Layout::kKeyOfKvB) {
    // Halves, where both are there, win over the whole.
    entry.tensor = &tensor;
    entry.layout = layout;
  }
  return absl::OkStatus();
}

absl::Status GgufSource::Check(const std::string& name, const Entry& entry) const {
  const auto refuse = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(file_->path(), ": ", name, ": ", what));
  };
  const Entry& e = entry;
  if (e.layout == Layout::kKeyOfKvB) {
    if (e.tensor == nullptr || e.values == nullptr) return refuse("only one of attn_k_b and attn_v_b is there");
    const gguf::Geometry& g = geometry_;
    if (e.tensor->shape != std::vector<int64_t>{g.heads, g.kv_lora_rank, g.qk_nope_head_dim} ||
        e.values->shape != std::vector<int64_t>{g.heads, g.v_head_dim, g.kv_lora_rank}) {
      return refuse("attn_k_b or attn_v_b does not have the shape that the metadata ask for");
    }
    return absl::OkStatus();
  }
  const std::vector<int64_t>& shape = e.tensor->shape;
  if (e.layout == Layout::kRotaryQ || e.layout == Layout::kRotaryK) {
    const int64_t heads = e.layout == Layout::kRotaryQ ? geometry_.heads : geometry_.kv_heads;
    if (shape[0] % (2 * heads) != 0) return refuse(absl::StrCat(shape[0], " rows for ", heads, " heads"));
  }
  if (e.layout == Layout::kExperts && (shape.size() != 3 || shape[0] != geometry_.experts)) {
    return refuse(absl::StrCat("[", absl::StrJoin(shape, ", "), "] is no stack of ", geometry_.experts, " experts"));
  }
  return absl::OkStatus();
}

std::vector<std::string> GgufSource::Names() const {
  std::vector<std::string> names;
  names.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

absl::StatusOr<std::vector<int64_t>> GgufSource::ShapeOf(const std::string& name) {
  ASSIGN_OR_RETURN(Description description, Describe(name));
  return std::move(description.shape);
}

absl::StatusOr<GgufSource::Description> GgufSource::Describe(const std::string& name) const {
  const auto it = entries_.find(name);
  if (it == entries_.end()) return absl::NotFoundError(absl::StrCat(file_->path(), ": no tensor for \"", name, "\""));
  const Entry& entry = it->second;
  const std::vector<int64_t>& shape = entry.tensor->shape;
  const c10::ScalarType dtype = DtypeOf(entry.tensor->type);
  if (entry.layout == Layout::kExperts) return Description{dtype, {shape[1], shape[2]}};
  if (entry.layout == Layout::kKeyOfKvB) {
    const bool same = DtypeOf(entry.values->type) == dtype;
    return Description{same ? dtype : c10::ScalarType::Float,
                       {geometry_.heads * (geometry_.qk_nope_head_dim + geometry_.v_head_dim), geometry_.kv_lora_rank}};
  }
  return Description{dtype, shape};
}

at::Tensor GgufSource::Load(const TensorInfo& tensor, int64_t first, const std::vector<int64_t>& shape) const {
  const gguf::TensorTypeInfo& info = gguf::InfoOf(tensor.type);
  const c10::ScalarType dtype = DtypeOf(tensor.type);
  const char* data = file_->Data(tensor).data() + first / info.block_elements * info.block_bytes;
  const bool plain = info.block_elements == 1;
  if (plain && reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(info.block_bytes) == 0) {
    return at::from_blob(
        const_cast<char*>(data), shape, [keep = file_](void*) {}, at::TensorOptions(dtype));
  }
  at::Tensor values = at::empty(shape, at::TensorOptions(dtype));
  if (plain) {
    std::memcpy(values.mutable_data_ptr(), data, values.nbytes());
    return values;
  }
  auto* target = values.mutable_data_ptr<float>();
  const int64_t count = values.numel();
  ParallelFor(count, kElementsPerTask, [&](int64_t from, int64_t to) {
    gguf::Dequantise(tensor.type, data + from / info.block_elements * info.block_bytes, to - from, target + from);
  });
  return values;
}

absl::StatusOr<at::Tensor> GgufSource::Get(const std::string& name) {
  const auto it = entries_.find(name);
  if (it == entries_.end()) return absl::NotFoundError(absl::StrCat(file_->path(), ": no tensor for \"", name, "\""));
  const Entry& entry = it->second;
  return CatchTorchErrors(absl::StrCat(file_->path(), ": ", name), [&]() -> absl::StatusOr<at::Tensor> {
    const TensorInfo& tensor = *entry.tensor;
    const std::vector<int64_t>& shape = tensor.shape;
    switch (entry.layout) {
      case Layout::kExperts:
        return Load(tensor, entry.expert * shape[1] * shape[2], {shape[1], shape[2]});
      case Layout::kRotaryQ:
      case Layout::kRotaryK: {
        const int64_t heads = entry.layout == Layout::kRotaryQ ? geometry_.heads : geometry_.kv_heads;
        const at::Tensor pairs = Load(tensor, 0, shape).view({heads, shape[0] / heads / 2, 2, -1});
        return pairs.transpose(1, 2).contiguous().view(shape);
      }
      case Layout::kKeyOfKvB: {
        at::Tensor keys = Load(tensor, 0, shape).transpose(1, 2);
        at::Tensor values = Load(*entry.values, 0, entry.values->shape);
        if (keys.scalar_type() != values.scalar_type()) {
          keys = keys.to(c10::ScalarType::Float);
          values = values.to(c10::ScalarType::Float);
        }
        return at::cat({keys, values}, 1).view({-1, geometry_.kv_lora_rank});
      }
      default:
        return Load(tensor, 0, shape);
    }
  });
}

absl::StatusOr<ModelWeights> LoadGgufWeights(const std::string& path, std::optional<c10::ScalarType> dtype,
                                             c10::Device device, const BaseQuantisation& quantisation) {
  ASSIGN_OR_RETURN(const auto source, GgufSource::Open(path));
  ASSIGN_OR_RETURN(const nlohmann::json generation, gguf::GenerationConfigFromGguf(source->file()));
  ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(source->config(), generation, path));
  return LoadWeightsFrom(*source, config, config, dtype, device, path, quantisation);
}

}  // namespace retort

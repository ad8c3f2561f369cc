#include "model/convert/hf_weights.h"

#include <ATen/ops/isfinite.h>

#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status.h"
#include "model/model_folder.h"
#include "model/quantized/bitsandbytes.h"
#include "model/safetensors_writer.h"
#include "model/weights.h"

namespace retort {
namespace {

using c10::ScalarType;
using nlohmann::json;

constexpr uint64_t kMaxShardBytes = 5'000'000'000;

// One of the model's tensors and what it becomes in the file: itself, or the parts of a quantised one.
struct Planned {
  std::string name;
  bool quantise = false;
  std::vector<SafetensorsEntry> entries;

  uint64_t bytes() const {
    uint64_t sum = 0;
    for (const SafetensorsEntry& entry : entries) sum += entry.bytes();
    return sum;
  }
};

class HfWeights {
 public:
  HfWeights(TensorSource& source, const HfFormat& format, const std::string& where)
      : source_(source), format_(format), where_(where) {}

  absl::Status Plan(const ModelConfig& config) {
    ModelWeights places{.config = config};
    return VisitTensors(places, [&](const TensorPlace& place) -> absl::Status {
      Planned planned{.name = place.name, .quantise = format_.quantise.has_value() && place.weight_of != nullptr};
      if (planned.quantise) {
        // Made twice: how long the parts are is known when they are made, and the header comes first.
        ASSIGN_OR_RETURN(const auto parts, Quantised(place.name));
        for (const auto& [name, tensor] : parts) {
          planned.entries.push_back({name, tensor.scalar_type(), tensor.sizes().vec()});
        }
      } else {
        planned.entries.push_back({place.name, DtypeOf(place.name), place.shape});
      }
      const uint64_t bytes = planned.bytes();
      if (shard_bytes_ > 0 && shard_bytes_ + bytes > kMaxShardBytes) {
        shards_.emplace_back();
        shard_bytes_ = 0;
      }
      shards_.back().push_back(std::move(planned));
      shard_bytes_ += bytes;
      total_bytes_ += bytes;
      return absl::OkStatus();
    });
  }

  absl::Status Write(const std::string& folder) {
    json weight_map = json::object();
    for (size_t i = 0; i < shards_.size(); ++i) {
      const std::string file = shards_.size() == 1
                                   ? "model.safetensors"
                                   : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards_.size());
      std::vector<SafetensorsEntry> entries;
      for (const Planned& planned : shards_[i]) {
        entries.insert(entries.end(), planned.entries.begin(), planned.entries.end());
      }
      for (const SafetensorsEntry& entry : entries) weight_map[entry.name] = file;
      ASSIGN_OR_RETURN(SafetensorsWriter writer,
                       SafetensorsWriter::Create(folder + "/" + file, std::move(entries), {{"format", "pt"}}));
      for (const Planned& planned : shards_[i]) RETURN_IF_ERROR(Append(planned, writer));
      RETURN_IF_ERROR(writer.Commit());
    }
    if (shards_.size() == 1) return absl::OkStatus();
    const json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", weight_map}};
    return WriteFileAtomically(folder + "/model.safetensors.index.json", index.dump(2) + "\n");
  }

 private:
  using Parts = std::vector<std::pair<std::string, at::Tensor>>;

  // The gate's correction decides between experts whose scores are near: it stays in f32.
  ScalarType DtypeOf(const std::string& name) const {
    return absl::EndsWith(name, "e_score_correction_bias") ? ScalarType::Float : *format_.dtype;
  }

  absl::Status Append(const Planned& planned, SafetensorsWriter& writer) {
    if (!planned.quantise) {
      ASSIGN_OR_RETURN(const at::Tensor tensor, Converted(planned.name));
      return writer.Append(tensor);
    }
    ASSIGN_OR_RETURN(const Parts parts, Quantised(planned.name));
    for (const auto& [name, tensor] : parts) RETURN_IF_ERROR(writer.Append(tensor));
    return absl::OkStatus();
  }

  absl::StatusOr<at::Tensor> Converted(const std::string& name) {
    ASSIGN_OR_RETURN(const at::Tensor tensor, source_.Get(name));
    if (!c10::isFloatingType(tensor.scalar_type())) {
      return absl::InvalidArgumentError(
          absl::StrCat(where_, ": tensor \"", name, "\" does not hold floating-point values"));
    }
    const at::Tensor converted = tensor.to(DtypeOf(name));
    if (converted.scalar_type() == ScalarType::Half && !at::isfinite(converted).all().item().toBool()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where_, ": ", name, " holds values that are too large for float16; --type bfloat16 holds them"));
    }
    return converted;
  }

  absl::StatusOr<Parts> Quantised(const std::string& name) {
    ASSIGN_OR_RETURN(const at::Tensor tensor, Converted(name));
    const auto matrix = Quantise(tensor, *format_.quantise);
    if (!matrix.ok()) return WithContext(matrix.status(), absl::StrCat(where_, ": tensor \"", name, "\""));
    return QuantizedParts(*matrix, name);
  }

  TensorSource& source_;
  const HfFormat& format_;
  const std::string& where_;
  std::vector<std::vector<Planned>> shards_{1};
  uint64_t shard_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

}  // namespace

absl::Status WriteHfWeights(TensorSource& source, const ModelConfig& config, const HfFormat& format,
                            const std::string& where, const std::string& folder) {
  HfWeights weights(source, format, where);
  RETURN_IF_ERROR(weights.Plan(config));
  return weights.Write(folder);
}

json QuantizationConfig(const HfFormat& format) {
  const QuantiseOptions& quantise = *format.quantise;
  const bool int8 = quantise.type == QuantType::kInt8;
  return {{"_load_in_4bit", !int8},
          {"_load_in_8bit", int8},
          {"bnb_4bit_compute_dtype", DtypeName(*format.dtype)},
          {"bnb_4bit_quant_storage", "uint8"},
          {"bnb_4bit_quant_type", int8 ? "fp4" : QuantTypeName(quantise.type)},
          {"bnb_4bit_use_double_quant", !int8 && quantise.double_quant},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false},
          {"llm_int8_skip_modules", nullptr},
          {"llm_int8_threshold", 6.0},
          {"load_in_4bit", !int8},
          {"load_in_8bit", int8},
          {"quant_method", "bitsandbytes"}};
}

}  // namespace retort

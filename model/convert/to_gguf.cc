#include <atomic>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/json.h"
#include "common/status.h"
#include "model/convert/convert.h"
#include "model/convert/model_check.h"
#include "model/gguf/config.h"
#include "model/gguf/families.h"
#include "model/gguf/mixture.h"
#include "model/gguf/quants.h"
#include "model/gguf/vocab.h"
#include "model/gguf/writer.h"
#include "model/parallel_for.h"
#include "model/plain_source.h"
#include "model/safetensors_source.h"
#include "model/torch_status.h"

namespace retort {
namespace {

using gguf::FileType;
using gguf::Layout;
using gguf::TensorPlan;
using gguf::TensorRule;
using gguf::TensorType;
using nlohmann::json;

constexpr uint32_t kQuantisationVersion = 2;  // ggml's, of the blocks' layouts

// One tensor to be written, and what it is made of.
struct Planned {
  TensorPlan plan;
  const TensorRule* rule = nullptr;  // null: a tensor of factors
  std::vector<std::string> sources;  // names in the folder; one for each expert
  std::vector<float> factors;
};

class ToGguf {
 public:
  ToGguf(std::string folder, FileType type, const ConvertOptions& options)
      : folder_(std::move(folder)), type_(type), options_(options) {}

  absl::Status Convert(const std::string& file) {
    const std::string config_path = folder_ + "/config.json";
    ASSIGN_OR_RETURN(const json config, ReadJsonFile(config_path));
    if (!config.is_object() || !config.contains("model_type") || !config["model_type"].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(config_path, ": has no model_type"));
    }
    family_ = gguf::FindFamilyOfModelType(config["model_type"].get<std::string>());
    if (family_ == nullptr) {
      return absl::UnimplementedError(absl::StrCat(config_path, ": model_type ", config["model_type"].dump(),
                                                   " is not supported; these are: ", gguf::SupportedModelTypes()));
    }
    ASSIGN_OR_RETURN(geometry_, gguf::GeometryOf(config, config_path));
    ASSIGN_OR_RETURN(model_config_, ParseModelConfig(config, nullptr, folder_));
    ASSIGN_OR_RETURN(files_, OpenSafetensorsFolder(folder_));
    source_ = PlainTensors(*files_, model_config_, c10::ScalarType::Float);
    RETURN_IF_ERROR(CheckTensors(config));
    RETURN_IF_ERROR(PlanTensors());
    if (absl::string_view(family_->architecture) == "qwen3" && source_->Has("model.layers.0.self_attn.q_proj.bias")) {
      options_.warnings->push_back("llama.cpp has no biases in Qwen3's attention, and does not load the file");
    }

    gguf::Metadata metadata;
    metadata.String("general.architecture", family_->architecture);
    metadata.String("general.type", "model");
    metadata.String("general.name", Name());
    metadata.String("general.size_label", SizeLabel());
    metadata.Uint32("general.file_type", static_cast<uint32_t>(type_));
    metadata.Uint32("general.quantization_version", kQuantisationVersion);
    ASSIGN_OR_RETURN(const auto factors,
                     gguf::ConfigToMetadata(config, config_path, *family_, metadata, *options_.warnings));
    RETURN_IF_ERROR(gguf::TokenizerToMetadata(folder_, geometry_.vocab_size, metadata, *options_.warnings));
    for (const gguf::FactorTensor& tensor : factors) {
      const auto count = static_cast<int64_t>(tensor.values.size());
      planned_.push_back({{tensor.name, TensorType::kF32, {count}}, nullptr, {}, tensor.values});
    }

    std::vector<TensorPlan> plans;
    for (const Planned& planned : planned_) plans.push_back(planned.plan);
    ASSIGN_OR_RETURN(gguf::Writer writer, gguf::Writer::Create(file, metadata, std::move(plans)));
    for (const Planned& planned : planned_) {
      const absl::Status status = CatchTorchErrors(planned.plan.name, [&] { return Write(planned, writer); });
      if (!status.ok()) return WithContext(status, folder_);
    }
    return writer.Commit();
  }

 private:
  std::string Name() const {
    std::error_code error;
    const std::filesystem::path path = std::filesystem::absolute(folder_, error).lexically_normal();
    return (path.has_filename() ? path.filename() : path.parent_path().filename()).string();
  }

  // As the gguf package counts: two digits at least.
  std::string SizeLabel() const {
    double parameters = 0;
    for (const Planned& planned : planned_) parameters += static_cast<double>(planned.plan.elements());
    const auto [unit, suffix] = parameters > 1e12  ? std::pair(1e12, "T")
                                : parameters > 1e9 ? std::pair(1e9, "B")
                                : parameters > 1e6 ? std::pair(1e6, "M")
                                                   : std::pair(1e3, "K");
    const double scaled = parameters / unit;
    const int decimals = std::nearbyint(scaled) >= 10 ? 0 : std::nearbyint(scaled) >= 1 ? 1 : 2;
    return absl::StrFormat("%.*f%s", decimals, scaled, suffix);
  }

  // Before the tokenizer is read: its length is the embedding's.
  absl::Status CheckTensors(const json& config) {
    return CheckTensorsAgainstConfig(config, folder_,
                                     [&](const std::string& name) -> absl::StatusOr<std::vector<int64_t>> {
                                       const auto shape = source_->ShapeOf(name);
                                       return shape.ok() ? shape : WithContext(shape.status(), folder_);
                                     });
  }

  absl::Status PlanTensors() {
    std::set<std::string> used;
    for (const TensorRule& rule : family_->rules) {
      if (!absl::StrContains(rule.gguf, "{}")) RETURN_IF_ERROR(PlanTensor(rule, -1, used));
    }
    for (int64_t layer = 0; layer < geometry_.layers; ++layer) {
      for (const TensorRule& rule : family_->rules) {
        if (absl::StrContains(rule.gguf, "{}")) RETURN_IF_ERROR(PlanTensor(rule, layer, used));
      }
    }
    for (const std::string& name : source_->Names()) {
      if (used.contains(name) || IsLeftOut(name)) continue;
      return absl::UnimplementedError(absl::StrCat(
          folder_, ": tensor \"", name, "\" has no place in a GGUF file of architecture ", family_->architecture));
    }
    return absl::OkStatus();
  }

  bool IsLeftOut(const std::string& name) const {
    if (name == "lm_head.weight") return geometry_.tied;
    if (absl::EndsWith(name, ".rotary_emb.inv_freq")) return true;
    // Multi-token prediction stands behind the decoder's layers.
    int64_t layer = -1;
    return absl::StartsWith(name, "model.layers.") && std::sscanf(name.c_str(), "model.layers.%ld.", &layer) == 1 &&
           layer >= geometry_.layers;
  }

  absl::Status PlanTensor(const TensorRule& rule, int64_t layer, std::set<std::string>& used) {
    if (absl::string_view(rule.gguf) == "output.weight" && geometry_.tied) return absl::OkStatus();
    // Its two halves are written instead.
    if (absl::EndsWith(rule.gguf, ".attn_kv_b.weight")) return absl::OkStatus();
    Planned planned;
    planned.rule = &rule;
    planned.plan.name = gguf::Fill(rule.gguf, layer);
    const int64_t count = rule.layout == Layout::kExperts ? geometry_.experts : 1;
    for (int64_t expert = 0; expert < count; ++expert) {
      const std::string name = gguf::Fill(rule.hf, layer, expert);
      if (!source_->Has(name)) {
        if (expert == 0) return absl::OkStatus();  // what must be there was looked for before
        return absl::NotFoundError(absl::StrCat(folder_, ": tensor \"", name, "\" is missing"));
      }
      planned.sources.push_back(name);
      used.insert(name);
    }
    if (count == 0) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::vector<int64_t> first, source_->ShapeOf(planned.sources[0]));
    RETURN_IF_ERROR(SetShape(planned, std::move(first)));
    planned.plan.type =
        gguf::ChooseType(type_, family_->architecture, geometry_, planned.plan.name, planned.plan.shape);
    planned_.push_back(std::move(planned));
    return absl::OkStatus();
  }

  absl::Status SetShape(Planned& planned, std::vector<int64_t> shape) const {
    const gguf::Geometry& g = geometry_;
    const auto refuse = [&](absl::string_view why) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder_, ": tensor \"", planned.sources[0], "\" is [", absl::StrJoin(shape, ", "), "]: ", why));
    };
    if (shape.empty() || shape.size() > 2) return refuse("a vector or matrix is asked for");
    for (const int64_t size : shape) {
      if (size == 0) return refuse("it is empty");
    }
    switch (planned.rule->layout) {
      case Layout::kRotaryQ:
      case Layout::kRotaryK: {
        const int64_t heads = planned.rule->layout == Layout::kRotaryQ ? g.heads : g.kv_heads;
        if (shape[0] % (2 * heads) != 0) return refuse(absl::StrCat("its rows are not those of ", heads, " heads"));
        break;
      }
      case Layout::kKeyOfKvB:
      case Layout::kValueOfKvB:
        if (shape != std::vector<int64_t>{g.heads * (g.qk_nope_head_dim + g.v_head_dim), g.kv_lora_rank}) {
          return refuse("config.json asks for another shape");
        }
        shape = planned.rule->layout == Layout::kKeyOfKvB
                    ? std::vector<int64_t>{g.heads, g.kv_lora_rank, g.qk_nope_head_dim}
                    : std::vector<int64_t>{g.heads, g.v_head_dim, g.kv_lora_rank};
        break;
      case Layout::kExperts:
        if (shape.size() != 2) return refuse("a matrix is asked for");
        shape.insert(shape.begin(), g.experts);
        break;
      case Layout::kSame:
        break;
    }
    planned.plan.shape = std::move(shape);
    return absl::OkStatus();
  }

  // A tensor of the folder as f32.
  absl::StatusOr<at::Tensor> Load(const std::string& name) {
    ASSIGN_OR_RETURN(const at::Tensor stored, source_->Get(name));
    if (!c10::isFloatingType(stored.scalar_type())) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", name, "\" does not hold floating-point values"));
    }
    return stored.to(c10::ScalarType::Float);
  }

  at::Tensor Arrange(const at::Tensor& values, Layout layout) const {
    const gguf::Geometry& g = geometry_;
    switch (layout) {
      case Layout::kRotaryQ:
      case Layout::kRotaryK: {
        const int64_t heads = layout == Layout::kRotaryQ ? g.heads : g.kv_heads;
        return values.reshape({heads, 2, values.size(0) / heads / 2, -1}).transpose(1, 2);
      }
      case Layout::kKeyOfKvB:
      case Layout::kValueOfKvB: {
        const at::Tensor heads = values.view({g.heads, g.qk_nope_head_dim + g.v_head_dim, g.kv_lora_rank});
        return layout == Layout::kKeyOfKvB ? heads.narrow(1, 0, g.qk_nope_head_dim).transpose(1, 2)
                                           : heads.narrow(1, g.qk_nope_head_dim, g.v_head_dim);
      }
      default:
        return values;
    }
  }

  absl::Status Write(const Planned& planned, gguf::Writer& writer) {
    if (planned.rule == nullptr) {
      return writer.Append(
          {reinterpret_cast<const char*>(planned.factors.data()), planned.factors.size() * sizeof(float)});
    }
    const int64_t part = planned.plan.elements() / static_cast<int64_t>(planned.sources.size());
    for (const std::string& name : planned.sources) {
      ASSIGN_OR_RETURN(const at::Tensor values, Load(name));
      const at::Tensor plain = Arrange(values, planned.rule->layout).contiguous();
      if (plain.numel() != part) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor \"", name, "\" has another shape than \"", planned.sources[0], "\""));
      }
      RETURN_IF_ERROR(Append(name, planned.plan.type, plain, writer));
    }
    return absl::OkStatus();
  }

  static absl::Status Append(const std::string& name, TensorType type, const at::Tensor& values, gguf::Writer& writer) {
    const gguf::TensorTypeInfo& info = gguf::InfoOf(type);
    constexpr int64_t kElementsPerTask = 1 << 14;  // a multiple of every block
    const int64_t count = values.numel();
    const auto* source = values.const_data_ptr<float>();
    std::string bytes(static_cast<size_t>(count / info.block_elements * info.block_bytes), '\0');
    std::atomic<bool> finite = true;
    ParallelFor(count, kElementsPerTask, [&](int64_t from, int64_t to) {
      if (!gguf::AllFinite(type, source + from, to - from)) {
        finite = false;
        return;
      }
      gguf::Quantise(type, source + from, to - from, bytes.data() + from / info.block_elements * info.block_bytes);
    });
    if (!finite) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", name,
                                                     "\" holds values that are not finite, or too large for ",
                                                     info.name, "; --type bf16 holds all that are finite"));
    }
    return writer.Append(bytes);
  }

  const std::string folder_;
  const FileType type_;
  const ConvertOptions& options_;
  const gguf::Family* family_ = nullptr;
  gguf::Geometry geometry_;
  ModelConfig model_config_;
  std::unique_ptr<TensorSource> files_;
  std::unique_ptr<TensorSource> source_;  // of files_, as plain floats
  std::vector<Planned> planned_;
};

}  // namespace

absl::Status ConvertToGguf(const std::string& folder, const std::string& file, FileType type,
                           const ConvertOptions& options) {
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) {
    return absl::InvalidArgumentError(absl::StrCat(file, " is a folder; name the GGUF file to be written"));
  }
  if (!options.overwrite && std::filesystem::exists(file, error)) {
    return absl::AlreadyExistsError(absl::StrCat(file, " is there already; give --overwrite to replace it"));
  }
  return ToGguf(folder, type, options).Convert(file);
}

}  // namespace retort

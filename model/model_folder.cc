#include "model/model_folder.h"

#include <ATen/ops/isfinite.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/id.h"
#include "common/json.h"
#include "common/status.h"
#include "model/safetensors_writer.h"
#include "model/tokenizer_folder.h"
#include "model/torch_status.h"
#include "model/weights.h"

namespace retort {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr uint64_t kMaxShardBytes = 5'000'000'000;
// Smaller files are hashed anew each time: reading them costs less than trusting a cache.
constexpr uint64_t kCachedHashBytes = 1 << 20;

constexpr const char* kGenerationFile = "generation_config.json";

// Of a Llama that was made in code.
json ConfigToJson(const ModelConfig& config) {
  json out = {{"architectures", {"LlamaForCausalLM"}},
              {"model_type", config.model_type},
              {"hidden_act", "silu"},
              {"vocab_size", config.vocab_size},
              {"hidden_size", config.hidden_size},
              {"intermediate_size", config.intermediate_size},
              {"num_hidden_layers", config.num_hidden_layers},
              {"num_attention_heads", config.num_attention_heads},
              {"num_key_value_heads", config.num_key_value_heads},
              {"head_dim", config.head_dim},
              {"max_position_embeddings", config.max_position_embeddings},
              {"rms_norm_eps", config.rms_norm_eps},
              {"rope_theta", config.rope.theta},
              {"tie_word_embeddings", config.tie_word_embeddings},
              {"attention_bias", config.qkv_bias},
              {"mlp_bias", config.mlp_bias}};
  if (config.rope.type == RopeType::kLlama3) {
    out["rope_scaling"] = {{"rope_type", "llama3"},
                           {"factor", config.rope.factor},
                           {"low_freq_factor", config.rope.low_freq_factor},
                           {"high_freq_factor", config.rope.high_freq_factor},
                           {"original_max_position_embeddings", config.rope.original_max_position_embeddings}};
  }
  if (config.eos_token_ids.size() == 1) {
    out["eos_token_id"] = config.eos_token_ids[0];
  } else if (!config.eos_token_ids.empty()) {
    out["eos_token_id"] = config.eos_token_ids;
  }
  if (config.bos_token_id) out["bos_token_id"] = *config.bos_token_id;
  if (config.pad_token_id) out["pad_token_id"] = *config.pad_token_id;
  return out;
}

absl::Status CopyConfigFiles(const ModelWeights& weights, c10::ScalarType dtype, const std::string& source_folder,
                             const std::string& folder, const std::string& tokenizer_folder) {
  json config;
  if (source_folder.empty()) {
    if (weights.config.model_type != "llama") {
      return absl::UnimplementedError(
          absl::StrCat("save model: a ", weights.config.model_type, " needs the folder that it comes from"));
    }
    config = ConfigToJson(weights.config);
  }
  if (!source_folder.empty()) {
    ASSIGN_OR_RETURN(config, ReadJsonFile(absl::StrCat(source_folder, "/config.json")));
    RETURN_IF_ERROR(CopyModelFiles(source_folder, tokenizer_folder, folder));
  }
  DescribePlainWeights(dtype, config);
  config["vocab_size"] = weights.config.vocab_size;
  config["tie_word_embeddings"] = weights.config.tie_word_embeddings;
  return WriteFileAtomically(absl::StrCat(folder, "/config.json"), config.dump(2) + "\n");
}

// The gate's correction decides between experts whose scores are near: it stays as exact as it is.
c10::ScalarType StoredDtype(const std::string& name, c10::ScalarType dtype) {
  return name.ends_with("e_score_correction_bias") ? c10::ScalarType::Float : dtype;
}

absl::Status WriteWeights(const ModelWeights& weights, c10::ScalarType dtype, const std::string& folder) {
  std::vector<std::vector<std::pair<std::string, at::Tensor>>> shards(1);
  uint64_t shard_bytes = 0;
  uint64_t total_bytes = 0;
  for (auto& [name, tensor] : NamedTensors(weights)) {
    const uint64_t bytes = static_cast<uint64_t>(tensor.numel()) * c10::elementSize(StoredDtype(name, dtype));
    if (shard_bytes > 0 && shard_bytes + bytes > kMaxShardBytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().emplace_back(name, tensor);
    shard_bytes += bytes;
    total_bytes += bytes;
  }
  json weight_map = json::object();
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = shards.size() == 1
                                 ? "model.safetensors"
                                 : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, shards.size());
    std::vector<SafetensorsEntry> entries;
    for (const auto& [name, tensor] : shards[i]) {
      entries.push_back({name, StoredDtype(name, dtype), tensor.sizes().vec()});
      weight_map[name] = file;
    }
    ASSIGN_OR_RETURN(SafetensorsWriter writer, SafetensorsWriter::Create(absl::StrCat(folder, "/", file),
                                                                         std::move(entries), {{"format", "pt"}}));
    for (const auto& [name, tensor] : shards[i]) {
      const at::Tensor stored = tensor.to(StoredDtype(name, dtype));
      if (stored.scalar_type() == c10::ScalarType::Half && !at::isfinite(stored).all().item().toBool()) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, " holds values that are too large for float16; bfloat16 holds them"));
      }
      RETURN_IF_ERROR(writer.Append(stored));
    }
    RETURN_IF_ERROR(writer.Commit());
  }
  if (shards.size() == 1) return absl::OkStatus();
  const json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
  return WriteFileAtomically(absl::StrCat(folder, "/model.safetensors.index.json"), index.dump(2) + "\n");
}

// Whether a file's bytes decide what the model says.
bool IsPartOfRevision(const std::string& name) {
  if (name == "config.json" || name == "model.safetensors.index.json" || name.ends_with(".safetensors")) return true;
  return name == kGenerationFile || IsTokenizerFile(name);
}

// A cache entry that is unreadable or stale is passed over: the hash is then computed.
absl::StatusOr<std::string> HashOfFile(const fs::path& path, const std::string& cache_folder) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return ErrnoStatus(absl::StrCat("resolve ", path.string()), error.value());
  const uint64_t size_bytes = fs::file_size(real, error);
  if (error) return ErrnoStatus(absl::StrCat("stat ", path.string()), error.value());
  const auto mtime = fs::last_write_time(real, error);
  if (error) return ErrnoStatus(absl::StrCat("stat ", path.string()), error.value());
  if (cache_folder.empty() || size_bytes < kCachedHashBytes) return Sha256HexOfFile(real.string());

  const json key = {{"path", real.string()}, {"size_bytes", size_bytes}, {"mtime", mtime.time_since_epoch().count()}};
  const std::string entry_path = absl::StrCat(cache_folder, "/", Sha256Hex(real.string()), ".json");
  if (const auto entry = ReadJsonFile(entry_path);
      entry.ok() && entry->is_object() && entry->value("key", json()) == key) {
    const json hash = entry->value("sha256", json());
    if (hash.is_string() && IsSha256Hex(hash.get<std::string>())) return hash.get<std::string>();
  }
  ASSIGN_OR_RETURN(std::string hash, Sha256HexOfFile(real.string()));
  RETURN_IF_ERROR(MakeFolders(cache_folder));
  RETURN_IF_ERROR(WriteFileAtomically(entry_path, json{{"key", key}, {"sha256", hash}}.dump()));
  return hash;
}

}  // namespace

const char* DtypeName(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::BFloat16:
      return "bfloat16";
    case c10::ScalarType::Half:
      return "float16";
    default:
      return "float32";
  }
}

absl::Status CopyModelFiles(const std::string& source_folder, const std::string& tokenizer_folder,
                            const std::string& folder) {
  std::error_code error;
  const fs::path generation = fs::path(source_folder) / kGenerationFile;
  if (fs::exists(generation, error)) {
    fs::copy_file(generation, fs::path(folder) / kGenerationFile, error);
    if (error) return ErrnoStatus(absl::StrCat("copy ", generation.string()), error.value());
  }
  return CopyTokenizerFiles(tokenizer_folder.empty() ? source_folder : tokenizer_folder, folder);
}

void DescribePlainWeights(c10::ScalarType dtype, json& config) {
  config.erase("quantization_config");
  if (config.contains("num_nextn_predict_layers")) config["num_nextn_predict_layers"] = 0;
  // Where both spellings stand, transformers reads the newer one.
  if (config.contains("dtype")) config["dtype"] = DtypeName(dtype);
  if (config.contains("torch_dtype") || !config.contains("dtype")) config["torch_dtype"] = DtypeName(dtype);
}

absl::Status SaveModelFolder(const ModelWeights& weights, c10::ScalarType dtype, const std::string& source_folder,
                             const std::string& folder, const std::string& tokenizer_folder) {
  std::error_code error;
  if (fs::exists(folder, error))
    return absl::AlreadyExistsError(absl::StrCat("save model: ", folder, " exists already"));
  const std::string partial = absl::StrCat(folder, ".partial.", RandomHex(8));
  absl::Status status = MakeFolders(partial);
  if (status.ok()) status = CopyConfigFiles(weights, dtype, source_folder, partial, tokenizer_folder);
  if (status.ok()) {
    status =
        CatchTorchErrors(absl::StrCat("save model ", folder), [&] { return WriteWeights(weights, dtype, partial); });
  }
  if (status.ok()) status = PublishFolder(partial, folder);
  if (!status.ok()) fs::remove_all(partial, error);
  return status;
}

absl::StatusOr<std::string> ModelRevision(const std::string& folder, const std::string& cache_folder) {
  std::error_code error;
  std::vector<std::string> names;
  for (auto it = fs::directory_iterator(folder, error); !error && it != fs::directory_iterator(); it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (IsPartOfRevision(name)) names.push_back(name);
  }
  if (error) return ErrnoStatus(absl::StrCat("list ", folder), error.value());
  if (std::find(names.begin(), names.end(), "config.json") == names.end()) {
    return absl::NotFoundError(absl::StrCat("no model in ", folder, ": config.json is missing"));
  }
  std::sort(names.begin(), names.end());
  Sha256 revision;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const std::string hash, HashOfFile(fs::path(folder) / name, cache_folder));
    revision.UpdateField(name);
    revision.UpdateField(hash);
  }
  return ToBytes(revision.Finish());
}

}  // namespace retort

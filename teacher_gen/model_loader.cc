#include "teacher_gen/model_loader.h"

#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/convert/gguf_source.h"
#include "model/device.h"
#include "model/gguf/file.h"
#include "model/lora.h"
#include "model/lora_weights.h"
#include "model/parallel/shard.h"
#include "model/tokenizer_folder.h"

namespace retort {

namespace {

BaseQuantisation QuantisationOf(const ModelOptions& options) {
  if (!options.load_in_4bit && !options.load_in_8bit) return {};
  const QuantType type = options.load_in_8bit ? QuantType::kInt8 : QuantType::kNf4;
  return {.keep_stored = true, .quantise = QuantiseOptions{.type = type}};
}

}  // namespace

absl::StatusOr<LoadedModel> LoadModel(const ModelOptions& options) {
  LoadedModel loaded;
  ASSIGN_OR_RETURN(c10::Device device, ChooseDevice(options.device.empty() ? "auto" : options.device));
  const bool shared = options.tensor_parallel_size > 1;
  if (shared && device.is_cuda()) device = CudaDevice(options.tensor_parallel_rank);
  std::string dtype = options.dtype;
  if (dtype.empty()) dtype = device.is_cpu() ? "float32" : "bfloat16";
  if (dtype == "float32") {
    loaded.compute_dtype = c10::ScalarType::Float;
  } else if (dtype == "bfloat16") {
    loaded.compute_dtype = c10::ScalarType::BFloat16;
  } else {
    return absl::InvalidArgumentError(absl::StrCat("dtype \"", dtype, "\": must be float32 or bfloat16"));
  }
  // Of an adapter's folder where it has one: tokens may have been added for it.
  auto tokenizer = Tokenizer::Load(TokenizerFolderOf(options.model, options.adapter), options.now);
  if (tokenizer.ok()) {
    loaded.tokenizer = *std::move(tokenizer);
  } else if (!options.tokenizer_optional || !absl::IsNotFound(tokenizer.status())) {
    return tokenizer.status();
  }
  // As the file has it where the CPU engine widens as it reads, or an adapter is yet to be added before it is rounded.
  std::optional<c10::ScalarType> stored;
  if (!device.is_cpu() && options.adapter.empty()) stored = loaded.compute_dtype;
  std::error_code error;
  const bool is_gguf = gguf::IsGgufFile(options.model) && !std::filesystem::is_directory(options.model, error);
  const BaseQuantisation quantisation = QuantisationOf(options);
  if (shared && !is_gguf && options.adapter.empty() && !quantisation.keep_stored) {
    ASSIGN_OR_RETURN(loaded.weights, LoadWeightsOfRank(options.model, stored, device, options.tensor_parallel_rank,
                                                       options.tensor_parallel_size));
  } else {
    ASSIGN_OR_RETURN(loaded.weights, is_gguf ? LoadGgufWeights(options.model, stored, device, quantisation)
                                             : LoadWeights(options.model, stored, device, quantisation));
  }
  if (shared || !options.adapter.empty()) WidenQuantized(loaded.weights, stored.value_or(c10::ScalarType::Float));
  if (!options.adapter.empty()) {
    ASSIGN_OR_RETURN(const LoraAdapter adapter, LoadAdapter(options.adapter, loaded.weights.config));
    RETURN_IF_ERROR(MergeAdapter(adapter, loaded.weights, loaded.compute_dtype));
  }
  // An adapter is merged into whole matrices, a GGUF file is read whole.
  if (shared && !loaded.weights.config.shard.has_value()) {
    ASSIGN_OR_RETURN(loaded.weights,
                     ShardWeights(loaded.weights, options.tensor_parallel_rank, options.tensor_parallel_size));
  }
  if (options.eos_from_tokenizer && loaded.weights.config.eos_token_ids.empty() && loaded.tokenizer != nullptr &&
      loaded.tokenizer->eos_token_id() >= 0)
    loaded.weights.config.eos_token_ids.push_back(loaded.tokenizer->eos_token_id());
  return loaded;
}

}  // namespace retort

#include "student/setup.h"

#include <ATen/Context.h>
#include <spdlog/spdlog.h>
#include <torch/version.h>

#include <algorithm>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/status.h"
#include "common/version.h"
#include "model/config.h"
#include "model/device.h"
#include "model/tokenizer_folder.h"
#include "model/vocabulary.h"
#include "model/weights.h"

namespace retort {
namespace {

constexpr char kTrainSplit[] = "train";
constexpr char kValidationSplit[] = "validation";

absl::StatusOr<std::vector<v1::DatasetSource>> SourcesOf(const v1::TrainTask& task, const std::string& split) {
  std::vector<v1::DatasetSource> sources;
  for (const v1::DatasetSource& source : task.dataset()) {
    const std::string own = source.split().empty() ? kTrainSplit : source.split();
    if (own != kTrainSplit && own != kValidationSplit) {
      return absl::InvalidArgumentError(
          absl::StrCat(source.path(), ": split \"", own, "\" is neither \"train\" nor \"validation\""));
    }
    if (own == split) sources.push_back(source);
  }
  return sources;
}

std::string Describe(const DatasetCounts& counts) {
  return absl::StrCat("of the rows to train on ", counts.over_long, " are longer than student.training.max_length and ",
                      counts.nothing_to_train, " have nothing to train, so none is left");
}

absl::string_view BiasName(LoraBias bias) {
  return bias == LoraBias::kAll ? "all" : bias == LoraBias::kLoraOnly ? "lora_only" : "none";
}

absl::StatusOr<LoraConfig> ConfigOf(const v1::StudentSpec& student) {
  const v1::LoraSpec& spec = student.lora();
  LoraConfig lora;
  lora.r = spec.r();
  lora.lora_alpha = spec.lora_alpha();
  lora.lora_dropout = spec.lora_dropout();
  lora.base_model_name_or_path = student.model_name_or_path();
  lora.use_rslora = spec.use_rslora();
  lora.use_dora = spec.use_dora();
  if (spec.bias() == "all") {
    lora.bias = LoraBias::kAll;
  } else if (spec.bias() == "lora_only") {
    lora.bias = LoraBias::kLoraOnly;
  } else if (!spec.bias().empty() && spec.bias() != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat("student.lora.bias: \"", spec.bias(), "\" is neither none nor all nor lora_only"));
  }
  for (const auto& entry : spec.rank_pattern()) {
    lora.rank_pattern.emplace_back(entry.pattern(), static_cast<int64_t>(entry.value()));
  }
  for (const auto& entry : spec.alpha_pattern()) lora.alpha_pattern.emplace_back(entry.pattern(), entry.value());
  const auto list = [](const auto& field) { return std::vector<std::string>(field.begin(), field.end()); };
  lora.target_modules = list(spec.target_modules());
  lora.target_pattern = spec.target_modules_pattern();
  lora.target_parameters = list(spec.target_parameters());
  lora.exclude_modules = list(spec.exclude_modules());
  lora.exclude_pattern = spec.exclude_modules_pattern();
  lora.layers_to_transform.assign(spec.layers_to_transform().begin(), spec.layers_to_transform().end());
  lora.layers_pattern = list(spec.layers_pattern());
  lora.modules_to_save = list(spec.modules_to_save());
  lora.ensure_weight_tying = spec.ensure_weight_tying();
  if (!spec.init_lora_weights().empty()) lora.init_lora_weights = spec.init_lora_weights();
  return lora;
}

std::string NamesOf(const LoraConfig& config) {
  std::vector<std::string> names = config.target_modules;
  names.insert(names.end(), config.target_parameters.begin(), config.target_parameters.end());
  return absl::StrJoin(names, ", ");
}

// The adapter is taken as it is: what the job says of a new one may not contradict it.
absl::Status CheckSameLora(const v1::StudentSpec& student, const LoraConfig& loaded, const ModelConfig& config) {
  if (!student.has_lora()) return absl::OkStatus();
  ASSIGN_OR_RETURN(LoraConfig wanted, ConfigOf(student));
  const auto differs = [&](absl::string_view key, const auto& asked, const auto& found) {
    return absl::InvalidArgumentError(absl::StrCat("student.lora.", key, ": ", asked, " stands against ", found, " in ",
                                                   student.adapter_name_or_path(),
                                                   " (student.adapter_name_or_path), where training would start; "
                                                   "leave student.lora out to take what is there"));
  };
  if (wanted.r != loaded.r) return differs("r", wanted.r, loaded.r);
  if (wanted.lora_alpha != loaded.lora_alpha) return differs("lora_alpha", wanted.lora_alpha, loaded.lora_alpha);
  if (wanted.lora_dropout != loaded.lora_dropout) {
    return differs("lora_dropout", wanted.lora_dropout, loaded.lora_dropout);
  }
  if (wanted.use_rslora != loaded.use_rslora) return differs("use_rslora", wanted.use_rslora, loaded.use_rslora);
  if (wanted.use_dora != loaded.use_dora) return differs("use_dora", wanted.use_dora, loaded.use_dora);
  if (wanted.bias != loaded.bias) return differs("bias", BiasName(wanted.bias), BiasName(loaded.bias));
  // With tokens of its own, as it would train a new one.
  const bool adds = student.add_tokens_size() + student.add_special_tokens_size() > 0;
  if (adds && absl::c_linear_search(loaded.modules_to_save, "embed_tokens")) TrainEmbeddings(config, wanted);
  RETURN_IF_ERROR(WithContext(ResolveTargets(config, wanted), "student.lora"));
  const std::vector<LoraModule> asked = SelectedModules(config, wanted);
  const std::vector<LoraModule> found = SelectedModules(config, loaded);
  const auto same_name = [](const LoraModule& a, const LoraModule& b) { return a.name == b.name; };
  if (!std::equal(asked.begin(), asked.end(), found.begin(), found.end(), same_name)) {
    return differs("target_modules", NamesOf(wanted), NamesOf(loaded));
  }
  for (const LoraModule& module : asked) {
    const int64_t ranks[] = {RankOf(wanted, module.name), RankOf(loaded, module.name)};
    const double scalings[] = {ScalingOf(wanted, module.name), ScalingOf(loaded, module.name)};
    if (ranks[0] != ranks[1]) {
      return differs("rank_pattern", absl::StrCat(ranks[0], " for ", module.name), ranks[1]);
    }
    if (scalings[0] != scalings[1]) {
      return differs("alpha_pattern", absl::StrCat("scaling ", scalings[0], " for ", module.name), scalings[1]);
    }
  }
  if (FullTensors(config, wanted) != FullTensors(config, loaded)) {
    return differs("modules_to_save", absl::StrJoin(wanted.modules_to_save, ", "),
                   absl::StrJoin(loaded.modules_to_save, ", "));
  }
  return absl::OkStatus();
}

// The tokenizer of the job, where it is not the base's as it stands; else null.
absl::StatusOr<std::unique_ptr<Tokenizer>> OwnTokenizer(const v1::StudentSpec& student, const std::string& folder) {
  TokenizerOptions options;
  options.add_tokens.assign(student.add_tokens().begin(), student.add_tokens().end());
  options.add_special_tokens.assign(student.add_special_tokens().begin(), student.add_special_tokens().end());
  const bool adds = !options.add_tokens.empty() || !options.add_special_tokens.empty();
  if (!adds && folder == student.model_name_or_path()) return nullptr;
  return Tokenizer::Load(folder, options);
}

// Rows of the embeddings that training will have.
absl::StatusOr<int64_t> VocabularyOf(const v1::StudentSpec& student, const ModelConfig& config,
                                     const TokenAdditions& additions) {
  for (const TokenAdditions::Token& token : additions.tokens) {
    spdlog::info("{} token=\"{}\" id={}", token.known ? "token_known" : "token_added", token.text, token.id);
  }
  const int64_t wanted = std::max(config.vocab_size, additions.rows);
  if (student.adapter_name_or_path().empty()) return wanted;
  ASSIGN_OR_RETURN(const int64_t rows, VocabularyUnder(student.adapter_name_or_path(), config));
  if (rows >= wanted) return rows;
  return absl::InvalidArgumentError(
      absl::StrCat("student.add_tokens: the adapter that training starts from, ", student.adapter_name_or_path(),
                   ", has ", rows, " rows of embeddings, the tokenizer needs ", wanted,
                   "; tokens are added to a new adapter, or are in the one that it starts from already"));
}

absl::StatusOr<LoraAdapter> StartAdapter(const v1::TrainTask& task, const std::string& checkpoint_folder,
                                         const TokenAdditions& additions, ModelWeights& weights) {
  if (!checkpoint_folder.empty()) return LoadAdapter(checkpoint_folder, weights.config, {.keep_frozen = true});
  if (task.student().adapter_name_or_path().empty()) RETURN_IF_ERROR(AddTokens(additions, weights));
  return InitialAdapter(task.student(), weights, additions);
}

}  // namespace

absl::Status WriteTokenizerFiles(const std::map<std::string, std::string>& files, const std::string& folder) {
  for (const auto& [name, contents] : files) {
    ASSIGN_OR_RETURN(const std::string path, JoinBelow(folder, name));
    RETURN_IF_ERROR(MakeFolders(path.substr(0, path.rfind('/'))));
    RETURN_IF_ERROR(WriteFileAtomically(path, contents));
  }
  return absl::OkStatus();
}

BaseQuantisation QuantisationOf(const v1::StudentSpec& student, const ModelConfig& config) {
  BaseQuantisation quantisation{.keep_stored = true};
  const bool asked = student.load_in_4bit() || student.load_in_8bit();
  if (asked && config.bitsandbytes) {
    spdlog::warn("base_is_quantised model={} kept=\"as it is stored, not as load_in_4bit or load_in_8bit say\"",
                 student.model_name_or_path());
  } else if (student.load_in_8bit()) {
    quantisation.quantise = QuantiseOptions{.type = QuantType::kInt8};
  } else if (student.load_in_4bit()) {
    quantisation.quantise =
        QuantiseOptions{.type = student.bnb_4bit_quant_type() == "fp4" ? QuantType::kFp4 : QuantType::kNf4,
                        .double_quant = student.bnb_4bit_use_double_quant()};
  }
  return quantisation;
}

absl::StatusOr<LoraAdapter> InitialAdapter(const v1::StudentSpec& student, const ModelWeights& weights,
                                           const TokenAdditions& additions) {
  if (!student.adapter_name_or_path().empty()) {
    ASSIGN_OR_RETURN(LoraAdapter adapter, LoadAdapter(student.adapter_name_or_path(), weights.config));
    RETURN_IF_ERROR(CheckSameLora(student, adapter.config, weights.config));
    constexpr const char* kEmbeddings = "model.embed_tokens.weight";
    if (additions.any_new() && !adapter.full.contains(kEmbeddings) && !adapter.replaced.contains(kEmbeddings)) {
      return absl::InvalidArgumentError(
          absl::StrCat("student.add_tokens: the adapter that training starts from, ", student.adapter_name_or_path(),
                       ", has no embeddings of its own; tokens are added to a new adapter"));
    }
    RETURN_IF_ERROR(CompletePissa(weights, adapter));
    return adapter;
  }
  if (!student.has_lora()) {
    return absl::InvalidArgumentError(
        "student.lora is missing; without adapter_name_or_path it must say which adapter");
  }
  ASSIGN_OR_RETURN(LoraConfig lora, ConfigOf(student));
  if (additions.any_new()) TrainEmbeddings(weights.config, lora);
  auto adapter = InitLora(weights.config, lora, student.training().seed(), &weights);
  if (!adapter.ok()) return WithContext(adapter.status(), "student.lora");
  return adapter;
}

absl::StatusOr<std::string> FetchCheckpoint(ArtifactClient& artifacts, const v1::Checkpoint& checkpoint,
                                            const std::string& work_dir) {
  const std::string parent = absl::StrCat(work_dir, "/resume");
  RETURN_IF_ERROR(MakeFolders(parent));
  const std::string folder = absl::StrCat(parent, "/checkpoint-", checkpoint.step());
  absl::Status fetched = artifacts.GetFolder(checkpoint.artifact_id(), folder);
  if (absl::IsDataLoss(fetched) || absl::IsNotFound(fetched)) {
    // Nothing that the user wrote is wrong: the store has lost it.
    fetched = WithUnreadableArtifact(absl::DataLossError(fetched.message()), checkpoint.artifact_id());
  }
  RETURN_IF_ERROR(WithContext(fetched, absl::StrCat("fetch the checkpoint of step ", checkpoint.step())));
  return folder;
}

absl::StatusOr<TrainingSetup> PrepareTraining(const v1::TrainTask& task, const TaskFlags& flags,
                                              ArtifactClient& artifacts, const TellFunction& tell) {
  const v1::StudentSpec& student = task.student();
  TrainingSetup setup;
  ASSIGN_OR_RETURN(setup.device, ChooseDevice(student.device().empty() ? "auto" : student.device()));
  SetThreads(std::max(1, student.threads_per_worker()));
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(student.model_name_or_path()));

  DatasetOptions rows;
  rows.tokenizer_folder = TokenizerFolderOf(student.model_name_or_path(), student.adapter_name_or_path());
  rows.training = student.training();
  rows.add_tokens.assign(student.add_tokens().begin(), student.add_tokens().end());
  rows.add_special_tokens.assign(student.add_special_tokens().begin(), student.add_special_tokens().end());
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, OwnTokenizer(student, rows.tokenizer_folder));
  const TokenAdditions additions = tokenizer == nullptr ? TokenAdditions() : tokenizer->additions();
  ASSIGN_OR_RETURN(rows.vocab_size, VocabularyOf(student, config, additions));
  if (tokenizer != nullptr && (additions.any_new() || rows.tokenizer_folder != student.model_name_or_path())) {
    ASSIGN_OR_RETURN(setup.tokenizer_files, tokenizer->Files());
  }
  rows.max_length =
      student.training().max_length() > 0 ? student.training().max_length() : config.max_position_embeddings;
  if (task.now_unix_seconds() > 0) rows.now = absl::FromUnixSeconds(task.now_unix_seconds());
  rows.cache_dir = flags.cache_dir;
  rows.threads = flags.threads;
  rows.tell = tell;
  tell("reading the dataset");
  ASSIGN_OR_RETURN(const auto train_sources, SourcesOf(task, kTrainSplit));
  ASSIGN_OR_RETURN(const auto validation_sources, SourcesOf(task, kValidationSplit));
  ASSIGN_OR_RETURN(Dataset train, LoadDataset(artifacts, train_sources, rows));
  ASSIGN_OR_RETURN(Dataset validation, LoadDataset(artifacts, validation_sources, rows));
  setup.train_counts = train.counts();
  setup.validation_counts = validation.counts();
  if (train.size() == 0) return absl::InvalidArgumentError(Describe(train.counts()));

  std::string checkpoint_folder;
  if (task.has_resume_from()) {
    tell("fetching the checkpoint");
    ASSIGN_OR_RETURN(checkpoint_folder, FetchCheckpoint(artifacts, task.resume_from(), flags.work_dir));
  }
  tell("loading weights");
  if (const std::string& start = student.adapter_name_or_path(); !start.empty()) {
    const auto hash = Sha256HexOfFile(absl::StrCat(start, "/", kAdapterWeightsFile));
    if (hash.ok()) {
      setup.start_adapter_sha256 = *hash;
    } else {  // the checkpoint does without it
      spdlog::warn("start_adapter_unread error=\"{}\"", hash.status().ToString());
    }
  }
  TrainingModelOptions options;
  const bool bf16 = student.training().has_bf16() ? student.training().bf16() : setup.device.is_cuda();
  options.compute_dtype = bf16 ? c10::ScalarType::BFloat16 : c10::ScalarType::Float;
  ASSIGN_OR_RETURN(ModelWeights weights, LoadWeights(student.model_name_or_path(), options.compute_dtype, setup.device,
                                                     QuantisationOf(student, config)));
  ASSIGN_OR_RETURN(const LoraAdapter adapter, StartAdapter(task, checkpoint_folder, additions, weights));
  options.lora_dropout = adapter.config.lora_dropout;
  ASSIGN_OR_RETURN(auto model, TrainingModel::Create(std::move(weights), adapter, options));
  ASSIGN_OR_RETURN(setup.trainer,
                   Trainer::Create(student.training(), std::move(model), std::move(train), std::move(validation)));
  if (!checkpoint_folder.empty()) {
    ASSIGN_OR_RETURN(LoadedCheckpoint checkpoint, LoadCheckpoint(checkpoint_folder));
    if (checkpoint.manifest_sha256 != task.manifest_sha256()) {
      return absl::DataLossError(absl::StrCat(checkpoint_folder, " was trained on other data than this job's"));
    }
    Trainer& trainer = *setup.trainer;
    ASSIGN_OR_RETURN(const AdamWMoments moments, AssembleMoments(checkpoint, trainer.model().parameters()));
    const at::Tensor parameters = trainer.model().flat_parameters().clone();
    RETURN_IF_ERROR(trainer.Restore(checkpoint.step, parameters, moments, std::move(checkpoint.history)));
    spdlog::info("training_resumed step={} artifact_id={}", checkpoint.step, task.resume_from().artifact_id());
  }
  return setup;
}

Snapshot TakeSnapshot(const TrainingSetup& setup, const std::string& manifest_sha256) {
  Trainer& trainer = *setup.trainer;
  Snapshot snapshot;
  snapshot.tokenizer_files = setup.tokenizer_files;
  snapshot.step = trainer.step();
  snapshot.total_steps = trainer.plan().total_steps();
  snapshot.cursor = trainer.plan().CursorAt(trainer.step());
  snapshot.epoch = trainer.plan().EpochsAt(trainer.step());
  snapshot.seed = trainer.training().seed();
  snapshot.manifest_sha256 = manifest_sha256;
  snapshot.adapter = trainer.model().ExportAdapter();
  // A copy also where cpu() gives the tensor itself.
  snapshot.moments = {trainer.moments().exp_avg.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true),
                      trainer.moments().exp_avg_sq.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true)};
  snapshot.parameters = trainer.model().parameters();
  snapshot.history = trainer.history();
  snapshot.versions = {{"retort", std::string(kVersion)}, {"torch", TORCH_VERSION}};
  return snapshot;
}

}  // namespace retort

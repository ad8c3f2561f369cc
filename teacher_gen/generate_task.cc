#include "teacher_gen/generate_task.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/file.h"
#include "common/rpc/artifact_client.h"
#include "common/rpc/sample_client.h"
#include "common/status.h"
#include "model/device.h"
#include "model/weights.h"
#include "teacher_gen/native_backend.h"
#include "teacher_gen/openai_backend.h"
#include "teacher_gen/prompt_reader.h"
#include "teacher_gen/sample_keys.h"
#include "teacher_gen/sample_loop.h"
#include "teacher_gen/trace_committer.h"

namespace retort {
namespace {

constexpr int64_t kDefaultBatchSize = 32;
constexpr int64_t kDefaultConcurrency = 64;
constexpr int64_t kMaxConcurrency = 1024;  // as the job file's schema says: each request has a thread
constexpr int kDefaultRequestTimeoutSeconds = 600;
constexpr int kDefaultRetries = 8;

// A placement that is fenced ends here, whichever call found out.
template <typename T>
absl::StatusOr<T> UnlessFenced(const TaskContext& context, absl::StatusOr<T> result) {
  if (!result.ok()) ExitIfFenced(context.ref(), result.status());
  return result;
}

// Rates over the last seconds.
class RateMeter {
 public:
  void Add(absl::Time now, int64_t value) {
    points_.push_back({now, value});
    while (points_.size() > 2 && now - points_.front().first > absl::Seconds(5)) points_.pop_front();
  }
  double PerSecond() const {
    if (points_.size() < 2) return 0.0;
    const double seconds = absl::ToDoubleSeconds(points_.back().first - points_.front().first);
    return seconds <= 0.0 ? 0.0 : static_cast<double>(points_.back().second - points_.front().second) / seconds;
  }

 private:
  std::deque<std::pair<absl::Time, int64_t>> points_;
};

class GenerateRun {
 public:
  explicit GenerateRun(TaskContext& context)
      : context_(context),
        artifacts_(context.channel()),
        samples_(context.channel(), context.ref()),
        // What the set already held is counted once.
        first_replica_(absl::EndsWith(context.ref().task_id(), ".0")) {}

  absl::StatusOr<v1::TaskResult> Run();

 private:
  void Say(absl::string_view message) {
    v1::Progress progress = Base();
    progress.set_message(std::string(message));
    context_.ReportProgress(std::move(progress));
  }
  v1::Progress Base() const {
    v1::Progress progress;
    progress.set_unit("traces");
    // Of the whole set, whichever replica says it.
    progress.set_done(done_before_);
    progress.set_total(total_);
    return progress;
  }
  absl::StatusOr<std::vector<v1::Prompt>> ReadPrompts(const v1::SampleSet& set);
  // Keeps the backend of the set before where it is the same.
  absl::Status OpenBackend(const v1::SampleSet& set);
  absl::StatusOr<std::string> RevisionOf(const v1::SampleSet& set);
  absl::Status OpenNative(const v1::SampleSet& set);
  absl::Status OpenEndpoint(const v1::SampleSet& set);
  absl::Status RunSet(const v1::SampleSet& set, v1::TaskResult& result);

  TaskContext& context_;
  ArtifactClient artifacts_;
  SampleClient samples_;
  const bool first_replica_;
  int64_t total_ = 0;        // keys of all sets whose prompts are known
  int64_t done_before_ = 0;  // keys of the sets that are done
  std::string backend_key_;  // what the backend was made from
  std::unique_ptr<SampleBackend> backend_;
};

absl::StatusOr<std::vector<v1::Prompt>> GenerateRun::ReadPrompts(const v1::SampleSet& set) {
  std::vector<v1::Prompt> prompts;
  const std::string folder = absl::StrCat(context_.flags().cache_dir, "/blobs");
  RETURN_IF_ERROR(MakeFolders(folder));
  for (const v1::PromptSource& source : set.prompts()) {
    std::string path = source.path();
    if (source.has_file()) {
      path = absl::StrCat(folder, "/", source.file().sha256());
      const absl::Status fetched = artifacts_.GetFile(source.file(), path);
      if (!fetched.ok()) return WithContext(fetched, absl::StrCat("prompts ", source.path()));
    }
    RETURN_IF_ERROR(AppendPrompts(source, path, set.generator().system(), set.generator().instruction(), prompts));
  }
  return prompts;
}

absl::StatusOr<std::string> GenerateRun::RevisionOf(const v1::SampleSet& set) {
  const std::string folder = absl::StrCat(context_.flags().cache_dir, "/revisions");
  RETURN_IF_ERROR(MakeFolders(folder));
  absl::StatusOr<std::string> revision = ModelRevision(set.generator().model(), folder);
  if (!revision.ok()) return WithContext(revision.status(), absl::StrCat("model ", set.generator().model()));
  return RevisionWithAdapter(*revision, set.adapter_artifact_id());
}

absl::Status GenerateRun::OpenNative(const v1::SampleSet& set) {
  NativeBackendOptions options;
  options.model.model = set.generator().model();
  options.model.dtype = set.generator().dtype();
  options.model.device = set.generator().device();
  if (set.now_unix_seconds() > 0) options.model.now = absl::FromUnixSeconds(set.now_unix_seconds());
  if (set.generator().batch_size() > 0) {
    options.batch_size = set.generator().batch_size();
  } else {
    options.batch_size = kDefaultBatchSize;
  }
  Say("loading weights");
  ASSIGN_OR_RETURN(options.model_revision, RevisionOf(set));
  if (!set.adapter_artifact_id().empty()) {
    const std::string folder = absl::StrCat(context_.flags().cache_dir, "/adapters");
    RETURN_IF_ERROR(MakeFolders(folder));
    options.model.adapter = absl::StrCat(folder, "/", set.adapter_artifact_id());
    const absl::Status fetched = artifacts_.GetFolder(set.adapter_artifact_id(), options.model.adapter);
    if (!fetched.ok()) return WithContext(fetched, "the student's adapter");
  }
  const absl::Time start = absl::Now();
  absl::StatusOr<std::unique_ptr<SampleBackend>> backend = MakeNativeBackend(options);
  if (!backend.ok()) return WithContext(backend.status(), absl::StrCat("model ", options.model.model));
  backend_ = *std::move(backend);
  spdlog::info("model_loaded path={} adapter={} batch_size={} seconds={:.2f}", options.model.model,
               set.adapter_artifact_id(), options.batch_size, absl::ToDoubleSeconds(absl::Now() - start));
  return absl::OkStatus();
}

absl::Status GenerateRun::OpenEndpoint(const v1::SampleSet& set) {
  const v1::TeacherSpec& teacher = set.generator();
  ChatClientOptions options;
  options.base_url = teacher.base_url();
  options.model = teacher.model();
  if (!teacher.api_key_env().empty()) {
    const char* key = std::getenv(teacher.api_key_env().c_str());
    if (key == nullptr || *key == '\0') {
      return absl::FailedPreconditionError(
          absl::StrCat("teacher.api_key: the environment variable ", teacher.api_key_env(),
                       " is not set where this worker runs; set it for the worker daemon and resume the job"));
    }
    options.api_key = key;
  }
  options.timeout = absl::Seconds(teacher.request_timeout_seconds() > 0 ? teacher.request_timeout_seconds()
                                                                        : kDefaultRequestTimeoutSeconds);
  options.max_attempts = 1 + (teacher.max_retries() > 0 ? teacher.max_retries() : kDefaultRetries);
  const int64_t concurrency = teacher.max_concurrency() > 0 ? teacher.max_concurrency() : kDefaultConcurrency;
  if (concurrency > kMaxConcurrency) {
    return absl::InvalidArgumentError(
        absl::StrCat("teacher.max_concurrency: ", concurrency, " is above ", kMaxConcurrency));
  }
  backend_ = MakeOpenAiBackend(std::move(options), concurrency);
  spdlog::info("endpoint_opened base_url={} model={} max_concurrency={}", teacher.base_url(), teacher.model(),
               concurrency);
  return absl::OkStatus();
}

absl::Status GenerateRun::OpenBackend(const v1::SampleSet& set) {
  v1::TeacherSpec spec = set.generator();
  spec.clear_sampling();
  spec.clear_instruction();
  spec.clear_system();
  spec.clear_workers();
  const std::string key = absl::StrCat(spec.SerializeAsString(), "\n", set.adapter_artifact_id());
  if (backend_ != nullptr && key == backend_key_) return absl::OkStatus();
  backend_.reset();  // two models at once may not fit
  if (spec.backend() == v1::TEACHER_BACKEND_OPENAI) {
    RETURN_IF_ERROR(OpenEndpoint(set));
  } else {
    RETURN_IF_ERROR(OpenNative(set));
  }
  backend_key_ = key;
  return absl::OkStatus();
}

absl::Status GenerateRun::RunSet(const v1::SampleSet& set, v1::TaskResult& result) {
  const v1::Sampling& sampling = set.generator().sampling();
  ASSIGN_OR_RETURN(std::vector<v1::Prompt> prompts, ReadPrompts(set));
  RETURN_IF_ERROR(OpenBackend(set));
  for (size_t i = 0; i < prompts.size(); ++i) {
    const absl::Status rendered = backend_->Render(prompts[i]);
    if (!rendered.ok()) return WithContext(rendered, absl::StrCat("prompt ", i, " of ", set.sample_set_id()));
  }
  SampleSetDeclaration declaration;
  declaration.sample_set_id = set.sample_set_id();
  declaration.model_revision = backend_->model_revision();
  declaration.sampling_hash = SamplingHash(sampling);
  declaration.n = std::max(1, sampling.n());
  const int64_t keys = static_cast<int64_t>(prompts.size()) * declaration.n;
  total_ = std::max(total_, done_before_ + keys);
  const absl::Status prepared = samples_.Prepare(declaration, std::move(prompts));
  ExitIfFenced(context_.ref(), prepared);
  if (!prepared.ok()) return WithContext(prepared, absl::StrCat("sample set ", set.sample_set_id()));
  spdlog::info("sample_set_begun id={} keys={}", set.sample_set_id(), keys);

  TraceCommitter committer({[&](std::vector<v1::CommitTracesRequest::Item> items) {
                              return UnlessFenced(context_, samples_.Commit(std::move(items)));
                            },
                            [&](std::vector<v1::SavePartialsRequest::Item> items) {
                              return UnlessFenced(context_, samples_.SavePartials(std::move(items)));
                            }},
                           4 * backend_->capacity());
  SampleLoopOptions options;
  options.sampling = sampling;
  options.acquire = [&](int limit) { return UnlessFenced(context_, samples_.Acquire(set.sample_set_id(), limit)); };
  RateMeter traces, tokens;
  absl::Time report_at = absl::InfinitePast();
  options.progress = [&](int64_t remaining) {
    const absl::Time now = absl::Now();
    if (now < report_at && remaining > 0) return;
    report_at = now + absl::Milliseconds(250);
    traces.Add(now, committer.stored());
    tokens.Add(now, backend_->tokens_written());
    v1::Progress progress = Base();
    progress.set_done(done_before_ + keys - remaining);
    progress.set_rate_per_second(traces.PerSecond());
    progress.set_tokens_per_second(tokens.PerSecond());
    progress.set_message(set.sample_set_id());
    context_.ReportProgress(std::move(progress));
  };
  RETURN_IF_ERROR(RunSampleLoop(options, *backend_, committer));
  done_before_ += keys;
  for (const auto& [reason, count] : committer.outcomes())
    (*result.mutable_outcomes()->mutable_counts())[reason] += count;
  if (first_replica_) {
    ASSIGN_OR_RETURN(const v1::SampleSetInfo info, samples_.GetSampleSet(set.sample_set_id()));
    const auto reused = info.outcomes().counts().find("reused");
    if (reused != info.outcomes().counts().end())
      (*result.mutable_outcomes()->mutable_counts())["reused"] += reused->second;
  }
  spdlog::info("sample_set_done id={} stored_here={}", set.sample_set_id(), committer.stored());
  return absl::OkStatus();
}

absl::StatusOr<v1::TaskResult> GenerateRun::Run() {
  v1::TaskResult result;
  for (const v1::SampleSet& set : context_.task().generate().sample_sets()) {
    RETURN_IF_ERROR(RunSet(set, result));
    const std::string& id = set.sample_set_id();
    const std::string revision = backend_->model_revision();
    std::string hex;
    for (const char byte : revision) absl::StrAppend(&hex, absl::Hex(static_cast<uint8_t>(byte), absl::kZeroPad2));
    (*result.mutable_versions())[absl::StrCat(id.substr(id.rfind('/') + 1), "_revision")] = hex;
  }
  return result;
}

}  // namespace

absl::StatusOr<v1::TaskResult> RunGenerateTask(TaskContext& context) {
  if (!context.task().has_generate())
    return absl::InvalidArgumentError("retort-teacher was given a task that generates nothing");
  SetThreads(context.flags().threads);
  return GenerateRun(context).Run();
}

}  // namespace retort

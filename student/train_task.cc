#include "student/train_task.h"

#include <spdlog/spdlog.h>
#include <torch/version.h>

#include <algorithm>
#include <future>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/fault.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/rpc/artifact_client.h"
#include "common/status.h"
#include "common/version.h"
#include "model/weights.h"
#include "student/checkpoint_saver.h"
#include "student/export_task.h"
#include "student/gang.h"
#include "student/private_address.h"
#include "student/setup.h"
#include "student/state_sync.h"

namespace retort {
namespace {

constexpr absl::Duration kCheckpointInterval = absl::Seconds(60);
constexpr absl::Duration kJoinTimeout = absl::Minutes(10);
constexpr absl::Duration kUploadTimeout = absl::Minutes(30);
constexpr absl::Duration kReportInterval = absl::Milliseconds(200);
constexpr absl::Duration kMicroBatchReportInterval = absl::Seconds(2);
// Memberships in a row in which no step was made.
constexpr int kMaxBarrenGangs = 50;

class TrainLoop {
 public:
  TrainLoop(TaskContext& context, TrainingSetup setup, ArtifactClient& artifacts)
      : context_(context), task_(context.task().train()), setup_(std::move(setup)), artifacts_(artifacts) {}

  absl::StatusOr<v1::TaskResult> Run();

 private:
  enum class End { kFinished, kGangChanged };

  absl::StatusOr<std::unique_ptr<Gang>> Join();
  // Trains until all is done or the gang is to be re-formed. Errors: what ends the training.
  absl::StatusOr<End> Train(Gang& gang);
  absl::Status AfterStep(Gang& gang);
  absl::Status Save(bool rolling);
  absl::Status Finish(Gang& gang);
  absl::StatusOr<v1::TaskResult> Result(bool first);
  void Report(const std::string& message);
  void ReportStep(const TrainerProgress& progress);
  // Points that were not reported yet, or have an evaluation since.
  void ReportLosses();

  TaskContext& context_;
  const v1::TrainTask& task_;
  TrainingSetup setup_;
  ArtifactClient& artifacts_;
  Trainer& trainer() { return *setup_.trainer; }

  std::optional<TcpListener> listener_;
  uint64_t generation_ = 0;
  std::unique_ptr<CheckpointSaver> saver_;  // while this rank is the first
  std::future<absl::StatusOr<std::string>> revision_;
  int64_t saved_step_ = -1;
  absl::Time saved_at_ = absl::Now();
  size_t reported_points_ = 0;
  bool first_ = false;
  v1::Checkpoint final_checkpoint_;

  v1::Progress progress_;
  absl::Time reported_at_ = absl::InfinitePast();
  absl::Time rate_since_ = absl::InfinitePast();
  int64_t rate_steps_ = 0;
  int64_t rate_tokens_ = 0;
};

void TrainLoop::Report(const std::string& message) {
  progress_.set_done(trainer().step());
  progress_.set_total(trainer().plan().total_steps());
  progress_.set_unit("steps");
  progress_.set_message(message);
  context_.ReportProgress(progress_);
}

void TrainLoop::ReportStep(const TrainerProgress& step) {
  const absl::Time now = absl::Now();
  if (rate_since_ == absl::InfinitePast()) rate_since_ = now;
  ++rate_steps_;
  rate_tokens_ += step.tokens;
  progress_.set_loss(step.loss);
  if (now - reported_at_ < kReportInterval && !trainer().finished()) return;
  reported_at_ = now;
  const double seconds = absl::ToDoubleSeconds(now - rate_since_);
  if (seconds > 0) {
    progress_.set_rate_per_second(static_cast<double>(rate_steps_) / seconds);
    // Of the whole gang; the stage sums over its ranks, so only the first says it.
    progress_.set_tokens_per_second(first_ ? static_cast<double>(rate_tokens_) / seconds : 0);
  }
  if (seconds > 5) {
    rate_since_ = now;
    rate_steps_ = 0;
    rate_tokens_ = 0;
  }
  Report("training");
}

void TrainLoop::ReportLosses() {
  if (!first_) return;
  const std::vector<v1::LossPoint>& history = trainer().history();
  // After a change of the gang the history may be a shorter one.
  reported_points_ = std::min(reported_points_, history.size());
  for (; reported_points_ < history.size(); ++reported_points_) context_.ReportLoss(history[reported_points_]);
}

absl::Status TrainLoop::Save(bool rolling) {
  if (saved_step_ == trainer().step()) return absl::OkStatus();
  saved_step_ = trainer().step();
  saved_at_ = absl::Now();
  return saver_->Save(TakeSnapshot(setup_, task_.manifest_sha256()), rolling);
}

// What is due between two steps. Collective where the gang is used.
absl::Status TrainLoop::AfterStep(Gang& gang) {
  if (trainer().EvaluationDue()) {
    Report("evaluating");
    RETURN_IF_ERROR(trainer().Evaluate(gang));
    spdlog::info("evaluated step={} eval_loss={:.6f}", trainer().step(), trainer().history().back().eval_loss());
  }
  ReportLosses();
  if (!first_ || trainer().step() == 0) return absl::OkStatus();
  const int save_steps = trainer().training().save_steps();
  const bool by_steps = save_steps > 0 && trainer().step() % save_steps == 0;
  const bool by_time = absl::Now() - saved_at_ >= kCheckpointInterval && saver_->idle();
  if (by_steps || trainer().finished()) return Save(/*rolling=*/false);
  if (by_time) return Save(/*rolling=*/true);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Gang>> TrainLoop::Join() {
  Report("waiting for the gang");
  ASSIGN_OR_RETURN(const v1::JoinGangResponse membership,
                   context_.JoinGang(listener_->address(), trainer().step(), generation_, kJoinTimeout));
  generation_ = membership.generation();
  GangOptions options;
  options.numel = trainer().numel();
  options.device = setup_.device;
  options.plain_all_reduce = trainer().training().reduction() == v1::REDUCTION_NCCL;
  options.superseded = [this](uint64_t generation) { return context_.gang_generation() > generation; };
  return Gang::Form(*listener_, membership, options);
}

absl::StatusOr<TrainLoop::End> TrainLoop::Train(Gang& gang) {
  RETURN_IF_ERROR(SyncState(gang, trainer()));
  first_ = gang.rank() == 0;
  if (first_ && saver_ == nullptr) {
    saver_ = std::make_unique<CheckpointSaver>(CheckpointSaverOptions{
        absl::StrCat(context_.flags().work_dir, "/checkpoints"), trainer().training().save_total_limit(),
        [this](const std::string& folder) { return artifacts_.PutFolder(folder); },
        [this](const v1::Checkpoint& checkpoint) { return context_.RegisterCheckpoint(checkpoint); }});
    saved_at_ = absl::Now();
    revision_ =
        std::async(std::launch::async, [folder = task_.student().model_name_or_path(),
                                        cache = context_.flags().cache_dir] { return ModelRevision(folder, cache); });
  }
  rate_since_ = absl::InfinitePast();
  rate_steps_ = 0;
  rate_tokens_ = 0;
  Report("training");
  spdlog::info("training_started generation={} rank={} ranks={} step={} total_steps={}", gang.generation(), gang.rank(),
               gang.size(), trainer().step(), trainer().plan().total_steps());
  while (true) {
    RETURN_IF_ERROR(AfterStep(gang));
    if (trainer().finished()) {
      RETURN_IF_ERROR(Finish(gang));
      return End::kFinished;
    }
    bool leave = false;
    const bool wants_leave = context_.gang_generation() > gang.generation();
    ASSIGN_OR_RETURN(const TrainerProgress progress, trainer().Step(gang, wants_leave, &leave));
    ReportStep(progress);
    if (leave && !trainer().finished()) return End::kGangChanged;
  }
}

// The others stay until the first rank has made the final checkpoint durable: if it dies before, they still hold the
// state.
absl::Status TrainLoop::Finish(Gang& gang) {
  if (first_) {
    Report("uploading the final checkpoint");
    ASSIGN_OR_RETURN(final_checkpoint_, saver_->Flush(kUploadTimeout));
  } else {
    Report("waiting for the final checkpoint");
  }
  MAYBE_FAULT("student.before_final_barrier");
  return gang.GatherMessages("done", 4).status();
}

absl::StatusOr<v1::TaskResult> TrainLoop::Result(bool first) {
  v1::TaskResult result;
  if (!first) return result;
  auto& counts = *result.mutable_outcomes()->mutable_counts();
  counts["kept"] = setup_.train_counts.kept;
  counts["over_long"] = setup_.train_counts.over_long;
  counts["nothing_to_train"] = setup_.train_counts.nothing_to_train;
  if (setup_.validation_counts.kept + setup_.validation_counts.over_long + setup_.validation_counts.nothing_to_train >
      0) {
    counts["validation_kept"] = setup_.validation_counts.kept;
    counts["validation_over_long"] = setup_.validation_counts.over_long;
    counts["validation_nothing_to_train"] = setup_.validation_counts.nothing_to_train;
  }
  const std::string folder = absl::StrCat(context_.flags().work_dir, "/adapter");
  RETURN_IF_ERROR(MakeFolders(folder));
  RETURN_IF_ERROR(SaveAdapter(trainer().model().ExportAdapter(), folder));
  RETURN_IF_ERROR(WriteTokenizerFiles(setup_.tokenizer_files, folder));
  ASSIGN_OR_RETURN(*result.mutable_adapter_sha256(), Sha256HexOfFile(absl::StrCat(folder, "/", kAdapterWeightsFile)));
  ASSIGN_OR_RETURN(*result.add_artifacts(), UploadFolder(artifacts_, folder, "adapter", v1::STAGE_TRAIN));
  *result.mutable_final_checkpoint() = final_checkpoint_;
  auto& versions = *result.mutable_versions();
  versions["retort"] = std::string(kVersion);
  versions["torch"] = TORCH_VERSION;
  ASSIGN_OR_RETURN(const std::string revision, revision_.get());
  versions["student_revision"] = absl::BytesToHexString(revision);
  if (!setup_.start_adapter_sha256.empty()) versions["start_adapter_sha256"] = setup_.start_adapter_sha256;
  return result;
}

absl::StatusOr<v1::TaskResult> TrainLoop::Run() {
  ASSIGN_OR_RETURN(const std::string host, PrivateAddress(context_.flags().channel.address));
  ASSIGN_OR_RETURN(listener_, TcpListener::Listen(host));
  // A rank whose progress stands still while its peers wait is taken for hung, so a long step shows that it moves.
  trainer().OnMicroBatch([this](int64_t done) {
    if (absl::Now() - reported_at_ < kMicroBatchReportInterval) return;
    reported_at_ = absl::Now();
    Report(absl::StrCat(trainer().EvaluationDue() ? "evaluating" : "training", ", ", done, " micro-batches done"));
  });
  int barren = 0;
  int64_t last_step = trainer().step();
  while (true) {
    absl::StatusOr<std::unique_ptr<Gang>> gang = Join();
    absl::StatusOr<End> end = End::kGangChanged;
    bool broken = false;
    if (gang.ok()) {
      end = Train(**gang);
      broken = (*gang)->broken();
      if (end.ok() && *end == End::kFinished) return Result(first_);
    }
    const absl::Status status = gang.ok() ? end.status() : gang.status();
    // Everything else than a change of the gang, or trouble between its ranks, is for good.
    const bool again = status.ok() || broken ||
                       (!gang.ok() && (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
                                       absl::IsAborted(status) || absl::IsPermissionDenied(status)));
    if (!again) return status;
    barren = trainer().step() > last_step ? 0 : barren + 1;
    last_step = trainer().step();
    if (barren > kMaxBarrenGangs) {
      return absl::InternalError(absl::StrCat(barren, " gangs in a row made no step; the last: ", status.ToString()));
    }
    spdlog::warn("gang_left generation={} step={} reason=\"{}\"", generation_, trainer().step(),
                 status.ok() ? "the membership changes" : status.ToString());
  }
}

}  // namespace

absl::StatusOr<v1::TaskResult> RunTrainTask(TaskContext& context) {
  ArtifactClient artifacts(context.channel());
  ASSIGN_OR_RETURN(TrainingSetup setup,
                   PrepareTraining(context.task().train(), context.flags(), artifacts, [&](const std::string& message) {
                     v1::Progress progress;
                     progress.set_unit("steps");
                     progress.set_message(message);
                     context.ReportProgress(progress);
                   }));
  return TrainLoop(context, std::move(setup), artifacts).Run();
}

}  // namespace retort

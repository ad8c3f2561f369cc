#include "coordinator/server.h"

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr absl::Duration kStopGrace = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorServer>> CoordinatorServer::Start(const std::string& state_dir,
                                                                            const ServerOptions& server,
                                                                            const CoordinatorOptions& options,
                                                                            const Clock* clock) {
  RETURN_IF_ERROR(MakeFolders(state_dir, 0700));
  std::unique_ptr<CoordinatorServer> self(new CoordinatorServer());
  ASSIGN_OR_RETURN(self->log_, StateLog::Open(absl::StrCat(state_dir, "/state")));
  ASSIGN_OR_RETURN(self->samples_,
                   storage::SampleStore::Open({.path = absl::StrCat(state_dir, "/store"), .clock = clock}));
  ASSIGN_OR_RETURN(self->artifacts_, storage::ArtifactStore::Open({.root = absl::StrCat(state_dir, "/artifacts")}));
  ASSIGN_OR_RETURN(self->task_logs_, LogStore::Open(absl::StrCat(state_dir, "/logs")));
  CoreHooks hooks;
  hooks.release_holder = [samples = self->samples_.get()](const std::string& task_id, uint64_t epoch) {
    return samples->ReleaseHolder(task_id, epoch).status();
  };
  hooks.sample_set_info = [samples = self->samples_.get()](const std::string& sample_set_id) {
    return samples->GetSampleSet(sample_set_id);
  };
  ASSIGN_OR_RETURN(self->core_, Core::Create(options, clock, self->log_.get(), std::move(hooks)));
  Core* const core = self->core_.get();
  self->sweeper_ = std::make_unique<ArtifactSweeper>(core, self->artifacts_.get(), clock);
  self->job_service_ = std::make_unique<JobServiceImpl>(core, self->artifacts_.get(), self->task_logs_.get());
  self->task_service_ = std::make_unique<TaskServiceImpl>(core, self->artifacts_.get());
  self->worker_service_ = std::make_unique<WorkerServiceImpl>(core, self->task_logs_.get());
  self->rendezvous_service_ = std::make_unique<RendezvousServiceImpl>(core);
  self->sample_service_ = std::make_unique<storage::SampleServiceImpl>(self->samples_.get(), core);
  self->artifact_service_ = std::make_unique<storage::ArtifactServiceImpl>(self->artifacts_.get());
  ASSIGN_OR_RETURN(self->server_,
                   RpcServer::Start(server, {self->job_service_.get(), self->task_service_.get(),
                                             self->worker_service_.get(), self->rendezvous_service_.get(),
                                             self->sample_service_.get(), self->artifact_service_.get()}));
  core->Start();
  self->sweeper_->Start();
  return self;
}

CoordinatorServer::~CoordinatorServer() {
  if (core_ != nullptr) core_->Stop();
  if (server_ != nullptr) server_->Stop(kStopGrace);
}

}  // namespace retort

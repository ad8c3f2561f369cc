// The gRPC faces of the coordinator. Each method lies in a file of its own (coordinator/rpc/<method>.cc) and only
// translates.
//
// Thread-safe. They own nothing; core and stores must outlive them.
#pragma once

#include "coordinator/core.h"
#include "coordinator/log_store.h"
#include "retort/v1/job_service.grpc.pb.h"
#include "retort/v1/rendezvous_service.grpc.pb.h"
#include "retort/v1/task_service.grpc.pb.h"
#include "retort/v1/worker.grpc.pb.h"
#include "storage/artifact_store.h"

namespace retort {

class JobServiceImpl final : public v1::JobService::Service {
 public:
  JobServiceImpl(Core* core, storage::ArtifactStore* artifacts, LogStore* logs)
      : core_(core), artifacts_(artifacts), logs_(logs) {}

  grpc::Status SubmitJob(grpc::ServerContext* context, const v1::SubmitJobRequest* request,
                         v1::SubmitJobResponse* response) override;
  grpc::Status ListJobs(grpc::ServerContext* context, const v1::ListJobsRequest* request,
                        v1::ListJobsResponse* response) override;
  grpc::Status GetJob(grpc::ServerContext* context, const v1::GetJobRequest* request,
                      v1::GetJobResponse* response) override;
  grpc::Status WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                        grpc::ServerWriter<v1::WatchJobResponse>* writer) override;
  grpc::Status CancelJob(grpc::ServerContext* context, const v1::CancelJobRequest* request,
                         v1::CancelJobResponse* response) override;
  grpc::Status ResumeJob(grpc::ServerContext* context, const v1::ResumeJobRequest* request,
                         v1::ResumeJobResponse* response) override;
  grpc::Status GetLogs(grpc::ServerContext* context, const v1::GetLogsRequest* request,
                       grpc::ServerWriter<v1::GetLogsResponse>* writer) override;
  grpc::Status ListWorkers(grpc::ServerContext* context, const v1::ListWorkersRequest* request,
                           v1::ListWorkersResponse* response) override;
  grpc::Status GetVersion(grpc::ServerContext* context, const v1::GetVersionRequest* request,
                          v1::GetVersionResponse* response) override;

 private:
  Core* const core_;
  storage::ArtifactStore* const artifacts_;
  LogStore* const logs_;
};

class TaskServiceImpl final : public v1::TaskService::Service {
 public:
  TaskServiceImpl(Core* core, storage::ArtifactStore* artifacts) : core_(core), artifacts_(artifacts) {}

  grpc::Status GetTask(grpc::ServerContext* context, const v1::GetTaskRequest* request,
                       v1::GetTaskResponse* response) override;
  grpc::Status ReportProgress(grpc::ServerContext* context, const v1::ReportProgressRequest* request,
                              v1::ReportProgressResponse* response) override;
  grpc::Status RegisterCheckpoint(grpc::ServerContext* context, const v1::RegisterCheckpointRequest* request,
                                  v1::RegisterCheckpointResponse* response) override;
  grpc::Status CompleteTask(grpc::ServerContext* context, const v1::CompleteTaskRequest* request,
                            v1::CompleteTaskResponse* response) override;
  grpc::Status FailTask(grpc::ServerContext* context, const v1::FailTaskRequest* request,
                        v1::FailTaskResponse* response) override;

 private:
  Core* const core_;
  storage::ArtifactStore* const artifacts_;
};

class WorkerServiceImpl final : public v1::WorkerService::Service {
 public:
  WorkerServiceImpl(Core* core, LogStore* logs) : core_(core), logs_(logs) {}

  grpc::Status RegisterWorker(grpc::ServerContext* context, const v1::RegisterWorkerRequest* request,
                              v1::RegisterWorkerResponse* response) override;
  grpc::Status Heartbeat(grpc::ServerContext* context, const v1::HeartbeatRequest* request,
                         v1::HeartbeatResponse* response) override;
  grpc::Status WatchAssignments(grpc::ServerContext* context, const v1::WatchAssignmentsRequest* request,
                                grpc::ServerWriter<v1::WatchAssignmentsResponse>* writer) override;
  grpc::Status ReportTaskExit(grpc::ServerContext* context, const v1::ReportTaskExitRequest* request,
                              v1::ReportTaskExitResponse* response) override;
  grpc::Status AppendTaskLog(grpc::ServerContext* context, const v1::AppendTaskLogRequest* request,
                             v1::AppendTaskLogResponse* response) override;

 private:
  Core* const core_;
  LogStore* const logs_;
};

class RendezvousServiceImpl final : public v1::RendezvousService::Service {
 public:
  explicit RendezvousServiceImpl(Core* core) : core_(core) {}

  grpc::Status JoinGang(grpc::ServerContext* context, const v1::JoinGangRequest* request,
                        v1::JoinGangResponse* response) override;

 private:
  Core* const core_;
};

}  // namespace retort

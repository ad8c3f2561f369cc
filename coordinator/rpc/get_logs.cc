#include <map>
#include <string>
#include <utility>

#include "common/status.h"
#include "coordinator/rpc/services.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr int64_t kReadBytes = 256 << 10;
constexpr absl::Duration kLogWait = absl::Milliseconds(500);

using Key = std::pair<uint64_t, std::string>;  // epoch, task id: the order of placement

// Sends what the log has beyond `*offset`, in whole lines; `at_end` also sends a last line without its end.
grpc::Status SendNew(const LogStore& logs, const std::string& job_id, const v1::TaskRef& ref, bool at_end,
                     int64_t* offset, grpc::ServerWriter<v1::GetLogsResponse>* writer) {
  while (true) {
    auto data = logs.Read(job_id, ref, *offset, kReadBytes);
    if (!data.ok()) return ToGrpc(data.status());
    const size_t last_line = data->rfind('\n');
    const bool full = data->size() == static_cast<size_t>(kReadBytes);
    if (last_line != std::string::npos) {
      data->resize(last_line + 1);
    } else if (!full && !at_end) {
      return grpc::Status::OK;
    }
    if (data->empty()) return grpc::Status::OK;
    *offset += static_cast<int64_t>(data->size());
    v1::GetLogsResponse response;
    response.set_task_id(ref.task_id());
    response.set_epoch(ref.epoch());
    response.set_data(*std::move(data));
    if (!writer->Write(response)) return grpc::Status(grpc::StatusCode::CANCELLED, "the caller has gone");
  }
}

}  // namespace

grpc::Status JobServiceImpl::GetLogs(grpc::ServerContext* context, const v1::GetLogsRequest* request,
                                     grpc::ServerWriter<v1::GetLogsResponse>* writer) {
  std::map<Key, int64_t> offsets;
  uint64_t seen = 0;
  std::string name = request->job_id();
  while (!context->IsCancelled()) {
    auto job = core_->GetJob(name);
    if (!job.ok()) return ToGrpc(job.status());
    name = job->job_id();
    const bool last_round = !request->follow() || HasEnded(job->state());
    auto refs = logs_->List(job->job_id());
    if (!refs.ok()) return ToGrpc(refs.status());
    for (const v1::TaskRef& ref : *refs) {
      if (!request->task_id().empty() && ref.task_id() != request->task_id()) continue;
      int64_t& offset = offsets[{ref.epoch(), ref.task_id()}];
      if (const grpc::Status status = SendNew(*logs_, job->job_id(), ref, last_round, &offset, writer); !status.ok())
        return status;
    }
    if (last_round) break;
    seen = logs_->WaitForAppend(seen, kLogWait);
  }
  return grpc::Status::OK;
}

}  // namespace retort

#include <utility>

#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {
namespace {

constexpr absl::Duration kMaxWait = absl::Seconds(20);

}  // namespace

grpc::Status RendezvousServiceImpl::JoinGang(grpc::ServerContext* context, const v1::JoinGangRequest* request,
                                             v1::JoinGangResponse* response) {
  auto answer = core_->JoinGang(*request, kMaxWait, [&] { return context->IsCancelled(); });
  if (!answer.ok()) return ToGrpc(answer.status());
  *response = *std::move(answer);
  return grpc::Status::OK;
}

}  // namespace retort

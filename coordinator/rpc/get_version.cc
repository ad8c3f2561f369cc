#include <string>

#include "common/version.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status JobServiceImpl::GetVersion(grpc::ServerContext*, const v1::GetVersionRequest*,
                                        v1::GetVersionResponse* response) {
  response->set_version(std::string(kVersion));
  response->set_coordinator_id(core_->coordinator_id());
  return grpc::Status::OK;
}

}  // namespace retort

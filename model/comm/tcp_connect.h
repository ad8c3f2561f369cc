// Forming a mesh: the rank with the higher number connects, the lower one accepts, both prove that they belong
// together.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "common/file.h"
#include "model/comm/tcp_mesh.h"

namespace retort {

// One non-blocking socket a rank; the own entry is invalid. Errors: as TcpMesh::Connect.
absl::StatusOr<std::vector<UniqueFd>> ConnectPeers(const TcpListener& listener, const TcpMeshOptions& options);

}  // namespace retort

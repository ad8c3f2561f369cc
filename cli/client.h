// distctl's connection to a coordinator.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cli/command.h"
#include "common/rpc/channel.h"
#include "common/rpc/retry.h"
#include "retort/v1/job_service.grpc.pb.h"

namespace retort::cli {

struct Client {
  std::string address;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::JobService::Stub> jobs;
  v1::GetVersionResponse server;
};

// The state folder: --state-dir, else ~/.retort.
std::string StateDir(const Globals& globals);

// Where to connect and with what: --coordinator, else the local cluster's address in DIR/local.json; the token of
// --token-file, else DIR/token when it is there. Errors: kNotFound (no --coordinator and no local cluster),
// kInvalidArgument (local.json is damaged).
absl::StatusOr<ChannelOptions> FindCoordinator(const Globals& globals);

// Connects and asks for the version, waiting at most a few seconds for an answer. Errors: kUnavailable (nobody answers;
// says how to start one), kUnauthenticated and kPermissionDenied (the token), those of FindCoordinator and OpenChannel.
absl::StatusOr<Client> Connect(const Globals& globals);

// How long distctl repeats a call while the coordinator restarts.
RetryOptions ClientRetry();

// Errors: kNotFound (no such job; an ambiguous prefix).
absl::StatusOr<v1::Job> GetJob(const Client& client, const std::string& job);

}  // namespace retort::cli

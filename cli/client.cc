#include "cli/client.h"

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/json.h"

namespace retort::cli {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kConnectWait = absl::Seconds(3);

}  // namespace

std::string StateDir(const Globals& globals) {
  std::error_code error;
  std::string folder = globals.state_dir;
  if (folder.empty()) {
    const char* home = std::getenv("HOME");
    folder = absl::StrCat(home == nullptr ? "." : home, "/.retort");
  }
  return fs::absolute(folder, error).lexically_normal().string();
}

absl::StatusOr<ChannelOptions> FindCoordinator(const Globals& globals) {
  const std::string folder = StateDir(globals);
  std::error_code error;
  ChannelOptions options{.address = globals.coordinator,
                         .token_file = globals.token_file,
                         .tls_ca = globals.tls_ca,
                         .tls_cert = globals.tls_cert,
                         .tls_key = globals.tls_key};
  if (options.token_file.empty() && fs::exists(folder + "/token", error)) options.token_file = folder + "/token";
  if (!options.address.empty()) return options;
  const std::string file = folder + "/local.json";
  const auto local = ReadJsonFile(file);
  if (absl::IsNotFound(local.status())) {
    return absl::NotFoundError(
        absl::StrCat("no local cluster in ", folder,
                     "; start one with `distctl local up`, or name a coordinator with --coordinator HOST:PORT"));
  }
  if (!local.ok()) return local.status();
  const nlohmann::json port = local->value("/coordinator/port"_json_pointer, nlohmann::json());
  if (!port.is_number_integer() || port.get<int64_t>() < 1 || port.get<int64_t>() > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": coordinator.port: wants a port; `distctl local up` writes it again"));
  }
  options.address = absl::StrCat("127.0.0.1:", port.get<int64_t>());
  return options;
}

absl::StatusOr<Client> Connect(const Globals& globals) {
  ASSIGN_OR_RETURN(const ChannelOptions options, FindCoordinator(globals));
  Client client{.address = options.address};
  ASSIGN_OR_RETURN(client.channel, OpenChannel(options));
  client.jobs = v1::JobService::NewStub(client.channel);
  RetryOptions retry;
  retry.total = kConnectWait;
  retry.attempt = kConnectWait;
  auto version = UnaryWithRetry<v1::GetVersionResponse>(
      "GetVersion", retry, [&](grpc::ClientContext* context, v1::GetVersionResponse* response) {
        return client.jobs->GetVersion(context, v1::GetVersionRequest(), response);
      });
  if (version.ok()) {
    client.server = *std::move(version);
    return client;
  }
  if (IsRetryable(version.status())) {
    const std::string advice = IsLoopbackAddress(options.address) ? "; start one with `distctl local up`" : "";
    return absl::UnavailableError(absl::StrCat("no coordinator answers at ", options.address, advice));
  }
  if (absl::IsUnauthenticated(version.status()) || absl::IsPermissionDenied(version.status())) {
    return absl::Status(version.status().code(),
                        absl::StrCat("the coordinator at ", options.address, " does not accept the token of ",
                                     options.token_file.empty() ? "this client, which has none; give --token-file"
                                                                : options.token_file));
  }
  return WithContext(version.status(), absl::StrCat("coordinator at ", options.address));
}

RetryOptions ClientRetry() {
  RetryOptions retry;
  retry.total = absl::Seconds(30);
  return retry;
}

absl::StatusOr<v1::Job> GetJob(const Client& client, const std::string& job) {
  v1::GetJobRequest request;
  request.set_job_id(job);
  auto response = UnaryWithRetry<v1::GetJobResponse>("GetJob", ClientRetry(),
                                                     [&](grpc::ClientContext* context, v1::GetJobResponse* response) {
                                                       return client.jobs->GetJob(context, request, response);
                                                     });
  if (response.ok()) return std::move(*response->mutable_job());
  if (absl::IsNotFound(response.status())) {
    return absl::NotFoundError(absl::StrCat("there is no job \"", job, "\"; `distctl list` shows them"));
  }
  return response.status();
}

}  // namespace retort::cli

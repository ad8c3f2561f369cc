#include "common/rpc/channel.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr int64_t kMaxPemBytes = 1 << 20;
constexpr size_t kMinTokenBytes = 16;
constexpr size_t kMaxTokenBytes = 1024;

// gRPC reads a connection's handshake only while some call waits on the channel; between the calls of a caller that
// retries, that is left to a background poll of every 5 s, and so was finding a restarted coordinator. Set before main,
// while there is one thread and gRPC has not read it.
[[maybe_unused]] const int kBackupPollIsSet =
    setenv("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "100", /*overwrite=*/0);

class BearerToken final : public grpc::MetadataCredentialsPlugin {
 public:
  explicit BearerToken(absl::string_view token) : value_(absl::StrCat("Bearer ", token)) {}
  bool IsBlocking() const override { return false; }
  grpc::Status GetMetadata(grpc::string_ref, grpc::string_ref, const grpc::AuthContext&,
                           std::multimap<std::string, std::string>* metadata) override {
    metadata->emplace("authorization", value_);
    return grpc::Status::OK;
  }

 private:
  const std::string value_;
};

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TransportCredentials(const ChannelOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError("a client certificate needs both --tls-cert and --tls-key");
  }
  if (options.tls_ca.empty()) {
    if (!options.tls_cert.empty()) {
      return absl::InvalidArgumentError(
          "--tls-cert needs --tls-ca, which the coordinator's certificate is checked against");
    }
    if (!IsLoopbackAddress(options.address)) {
      return absl::InvalidArgumentError(
          absl::StrCat("coordinator ", options.address, " is not on this machine's loopback interface: give --tls-ca"));
    }
    return grpc::experimental::LocalCredentials(LOCAL_TCP);
  }
  grpc::SslCredentialsOptions ssl;
  ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadFile(options.tls_ca, kMaxPemBytes));
  if (!options.tls_cert.empty()) {
    ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadFile(options.tls_cert, kMaxPemBytes));
    ASSIGN_OR_RETURN(ssl.pem_private_key, ReadFile(options.tls_key, kMaxPemBytes));
  }
  return grpc::SslCredentials(ssl);
}

absl::string_view HostOf(absl::string_view address) {
  if (!address.empty() && address.front() == '[') return address.substr(1, address.find(']') - 1);
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos || address.find(':') != colon)
    return address;  // no port, or a bare IPv6 address
  return address.substr(0, colon);
}

absl::Status CheckAddress(absl::string_view address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == absl::string_view::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 1 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("coordinator address \"", address, "\" is not HOST:PORT"));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsLoopbackAddress(absl::string_view address) {
  const std::string host(HostOf(address));
  if (host == "localhost") return true;
  in_addr v4;
  if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  return inet_pton(AF_INET6, host.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

absl::StatusOr<std::string> ReadTokenFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open token file ", path), errno);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(absl::StrCat("stat token file ", path), errno);
  if ((info.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(
        absl::StrFormat("token file %s has mode %04o, so other users of this machine may read it: chmod 600 it, and "
                        "make a new token if they may have",
                        path, info.st_mode & 07777));
  }
  std::string contents(kMaxTokenBytes + 64, '\0');
  const ssize_t size = read(fd.get(), contents.data(), contents.size());
  if (size < 0) return ErrnoStatus(absl::StrCat("read token file ", path), errno);
  contents.resize(static_cast<size_t>(size));
  const std::string token(absl::StripAsciiWhitespace(contents));
  if (token.size() < kMinTokenBytes || token.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat("token file ", path, " holds ", token.size(),
                                                   " characters; a token has ", kMinTokenBytes, " to ",
                                                   kMaxTokenBytes));
  }
  for (const char c : token) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(
          absl::StrCat("token file ", path, " holds more than one word of printable ASCII"));
    }
  }
  return token;
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ChannelOptions& options) {
  RETURN_IF_ERROR(CheckAddress(options.address));
  ASSIGN_OR_RETURN(auto credentials, TransportCredentials(options));
  if (!options.token_file.empty()) {
    ASSIGN_OR_RETURN(const std::string token, ReadTokenFile(options.token_file));
    // Plain loopback has no transport security, which gRPC asks of whatever carries call credentials by default.
    const auto level = options.tls_ca.empty() ? GRPC_SECURITY_NONE : GRPC_PRIVACY_AND_INTEGRITY;
    auto call = grpc::experimental::MetadataCredentialsFromPlugin(std::make_unique<BearerToken>(token), level);
    credentials = grpc::CompositeChannelCredentials(credentials, call);
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A restarted coordinator is found again at once.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(options.address, credentials, arguments);
}

}  // namespace retort

#include "common/rpc/server_security.h"

#include <grpcpp/resource_quota.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <openssl/crypto.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/file.h"
#include "common/id.h"
#include "common/rpc/channel.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr int64_t kMaxPemBytes = 1 << 20;
constexpr int kTokenHexDigits = 64;

// Lets a call through when it shows the token, or came over a connection whose client certificate was verified.
class CallerCheck final : public grpc::AuthMetadataProcessor {
 public:
  CallerCheck(std::string token, bool accept_certificates)
      : token_(std::move(token)), accept_certificates_(accept_certificates) {}

  bool IsBlocking() const override { return false; }

  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* context, OutputMetadata* consumed,
                       OutputMetadata*) override {
    if (accept_certificates_ && ShowsCertificate(*context)) return grpc::Status::OK;
    const auto found = metadata.find("authorization");
    if (found == metadata.end()) {
      return grpc::Status(grpc::StatusCode::UNAUTHENTICATED,
                          "no token was sent; give the coordinator's token file (--token-file)");
    }
    const absl::string_view value(found->second.data(), found->second.size());
    if (token_.empty() || !absl::StartsWith(value, "Bearer ") || !SameToken(value.substr(strlen("Bearer ")))) {
      return grpc::Status(grpc::StatusCode::UNAUTHENTICATED,
                          "wrong token; give the token file of this coordinator (--token-file)");
    }
    consumed->emplace("authorization", std::string(value));
    return grpc::Status::OK;
  }

 private:
  static bool ShowsCertificate(const grpc::AuthContext& context) {
    // Local credentials also count as an authenticated peer; only a TLS connection carries a certificate.
    const auto type = context.FindPropertyValues("transport_security_type");
    return !type.empty() && type.front() == "ssl" && context.IsPeerAuthenticated();
  }
  bool SameToken(absl::string_view given) const {
    return given.size() == token_.size() && CRYPTO_memcmp(given.data(), token_.data(), token_.size()) == 0;
  }

  const std::string token_;
  const bool accept_certificates_;
};

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> Credentials(const ServerOptions& options) {
  if (options.tls_cert.empty() != options.tls_key.empty()) {
    return absl::InvalidArgumentError("TLS needs both --tls-cert and --tls-key");
  }
  const bool tls = !options.tls_cert.empty();
  if (!tls && !options.tls_client_ca.empty()) {
    return absl::InvalidArgumentError("--tls-client-ca needs --tls-cert and --tls-key");
  }
  if (!tls && !IsLoopbackAddress(options.address)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "will not listen on ", options.address,
        " without TLS, because other machines reach it: give --tls-cert and --tls-key, or listen on 127.0.0.1"));
  }
  if (options.token_file.empty() && options.tls_client_ca.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("will not listen on ", options.address,
                     " without a way to know its callers: give --token-file (or with TLS --tls-client-ca)"));
  }
  std::string token;
  if (!options.token_file.empty()) {
    ASSIGN_OR_RETURN(token, ReadTokenFile(options.token_file));
  }
  std::shared_ptr<grpc::ServerCredentials> credentials;
  if (tls) {
    grpc::SslServerCredentialsOptions ssl(options.tls_client_ca.empty()
                                              ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                              : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
    grpc::SslServerCredentialsOptions::PemKeyCertPair pair;
    ASSIGN_OR_RETURN(pair.cert_chain, ReadFile(options.tls_cert, kMaxPemBytes));
    ASSIGN_OR_RETURN(pair.private_key, ReadFile(options.tls_key, kMaxPemBytes));
    ssl.pem_key_cert_pairs.push_back(std::move(pair));
    if (!options.tls_client_ca.empty()) {
      ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadFile(options.tls_client_ca, kMaxPemBytes));
    }
    credentials = grpc::SslServerCredentials(ssl);
  } else {
    credentials = grpc::experimental::LocalServerCredentials(LOCAL_TCP);
  }
  credentials->SetAuthMetadataProcessor(
      std::make_shared<CallerCheck>(std::move(token), !options.tls_client_ca.empty()));
  return credentials;
}

// gRPC says only that it could not listen; binding once ourselves tells why.
absl::Status ProbePort(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 ||
      port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("listen address \"", address, "\" is not HOST:PORT"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::InvalidArgumentError(absl::StrCat("listen address ", address, ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, &freeaddrinfo);
  const UniqueFd fd(socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus("socket", errno);
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(fd.get(), found->ai_addr, found->ai_addrlen) == 0 && listen(fd.get(), 1) == 0) return absl::OkStatus();
  if (errno == EADDRINUSE) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on ", address,
                     ": another process uses that port; stop it or choose another port (port 0 takes a free one)"));
  }
  return ErrnoStatus(absl::StrCat("cannot listen on ", address), errno);
}

}  // namespace

absl::Status EnsureTokenFile(const std::string& path) {
  if (access(path.c_str(), F_OK) == 0) return absl::OkStatus();
  return WithContext(WriteFileAtomically(path, absl::StrCat(RandomHex(kTokenHexDigits), "\n"), 0600), "make a token");
}

RpcServer::RpcServer(std::unique_ptr<grpc::Server> server, std::string address)
    : server_(std::move(server)), address_(std::move(address)) {}

RpcServer::~RpcServer() { Stop(absl::ZeroDuration()); }

void RpcServer::Stop(absl::Duration grace) {
  server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace));
  server_->Wait();
}

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const ServerOptions& options,
                                                            absl::Span<grpc::Service* const> services) {
  ASSIGN_OR_RETURN(auto credentials, Credentials(options));
  RETURN_IF_ERROR(ProbePort(options.address));
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(options.address, std::move(credentials), &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.address,
                     ": check that the address is this machine's, that the port is free and that "
                     "the certificate and key are PEM files that belong together"));
  }
  std::string address = absl::StrCat(options.address.substr(0, options.address.rfind(':')), ":", port);
  return std::unique_ptr<RpcServer>(new RpcServer(std::move(server), std::move(address)));
}

}  // namespace retort

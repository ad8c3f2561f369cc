// Who may talk to a server of ours, and a server started with the limits that all of them share.
//
// On loopback callers show a token ("authorization: Bearer <token>") whose file only the user can read; elsewhere the
// server speaks TLS and callers show the token or a certificate that `tls_client_ca` signed. Everybody else is told
// UNAUTHENTICATED, before any handler runs.
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/support/config.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace retort {

struct ServerOptions {
  std::string address = "127.0.0.1:0";  // host:port; port 0: any free one
  std::string token_file;               // empty: no token is accepted
  std::string tls_cert;                 // PEM, the server's certificate and key; both or neither
  std::string tls_key;
  std::string tls_client_ca;  // PEM; certificates it signed are accepted in place of the token
};

// Makes a random token in `path` (mode 0600) unless there is a file. Errors: kNotFound (no such folder),
// kPermissionDenied, kResourceExhausted (disk full).
absl::Status EnsureTokenFile(const std::string& path);

class RpcServer {
 public:
  // Listens and serves. The services must outlive the server.
  // Errors: kInvalidArgument (off loopback without TLS and a token or client CA; half a key pair; bad address),
  // kAlreadyExists (the port is used by another process), kNotFound, kPermissionDenied (files), kUnavailable.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(const ServerOptions& options,
                                                          absl::Span<grpc::Service* const> services);
  ~RpcServer();

  // The address as given, with the port that is bound.
  const std::string& address() const { return address_; }

  // Refuses new calls, gives running ones `grace` and cancels what is left. Waits until all handlers have returned.
  void Stop(absl::Duration grace);

 private:
  RpcServer(std::unique_ptr<grpc::Server> server, std::string address);

  const std::unique_ptr<grpc::Server> server_;
  const std::string address_;
};

}  // namespace retort

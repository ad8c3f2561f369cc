// The client's side of every connection inside Retort: credentials, limits, keepalive and quick reconnection.
//
// On loopback the connection is plain TCP and each call carries "authorization: Bearer <token>". Everywhere else it is
// TLS, with the token, a client certificate, or both.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace retort {

// Largest message either side sends or takes.
inline constexpr int kMaxMessageBytes = 16 << 20;

struct ChannelOptions {
  std::string address;     // host:port
  std::string token_file;  // must be readable by its owner alone; empty: no token is sent
  std::string tls_ca;      // PEM; given: the connection is TLS and the server's certificate is checked against it
  std::string tls_cert;    // PEM, the client's certificate and key; both or neither
  std::string tls_key;
};

// Reads the credentials and makes a channel, without waiting for a connection. The token is read once: after it was
// replaced a new channel is needed.
// Errors: kInvalidArgument (no port in the address; off loopback without tls_ca; half a key pair), kNotFound,
// kPermissionDenied (token file open to others).
absl::StatusOr<std::shared_ptr<grpc::Channel>> OpenChannel(const ChannelOptions& options);

// Reads a token: 16 to 1,024 printable characters, white space around them removed.
// Errors: kNotFound, kPermissionDenied (group or others may read or write it), kInvalidArgument (its contents).
absl::StatusOr<std::string> ReadTokenFile(const std::string& path);

// Whether "host:port" (or a bare host) names this machine's loopback interface: 127.0.0.0/8, ::1 or localhost.
bool IsLoopbackAddress(absl::string_view address);

}  // namespace retort

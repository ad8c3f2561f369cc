#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "common/file.h"
#include "common/rpc/channel.h"
#include "common/rpc/server_security.h"
#include "common/status.h"
#include "retort/v1/job_service.grpc.pb.h"
#include "tests/common/rpc/test_certificates.h"

namespace retort {
namespace {

using ::testing::HasSubstr;

class EchoVersion final : public v1::JobService::Service {
 public:
  grpc::Status GetVersion(grpc::ServerContext*, const v1::GetVersionRequest*,
                          v1::GetVersionResponse* response) override {
    response->set_version("test");
    return grpc::Status::OK;
  }
};

class SecurityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "retort-rpc-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    ASSERT_TRUE(EnsureTokenFile(Path("token")).ok());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }

  std::unique_ptr<RpcServer> Serve(const ServerOptions& options) {
    auto server = RpcServer::Start(options, {&service_});
    EXPECT_TRUE(server.ok()) << server.status();
    return server.ok() ? std::move(*server) : nullptr;
  }

  static absl::Status Call(const ChannelOptions& options) {
    auto channel = OpenChannel(options);
    if (!channel.ok()) return channel.status();
    auto stub = v1::JobService::NewStub(*channel);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(5));
    v1::GetVersionResponse response;
    return FromGrpc(stub->GetVersion(&context, {}, &response));
  }

  std::string folder_;
  EchoVersion service_;
};

TEST_F(SecurityTest, TokenOpensLoopback) {
  auto server = Serve({.token_file = Path("token")});
  EXPECT_TRUE(Call({.address = server->address(), .token_file = Path("token")}).ok());
}

TEST_F(SecurityTest, MissingAndWrongTokenAreRefused) {
  auto server = Serve({.token_file = Path("token")});
  const absl::Status missing = Call({.address = server->address()});
  EXPECT_EQ(missing.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("--token-file"));

  ASSERT_TRUE(EnsureTokenFile(Path("other")).ok());
  const absl::Status wrong = Call({.address = server->address(), .token_file = Path("other")});
  EXPECT_EQ(wrong.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(std::string(wrong.message()), HasSubstr("wrong token"));
}

TEST_F(SecurityTest, TokenFileOpenToOthersIsRefused) {
  ASSERT_EQ(chmod(Path("token").c_str(), 0640), 0);
  EXPECT_EQ(ReadTokenFile(Path("token")).status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(RpcServer::Start({.token_file = Path("token")}, {&service_}).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(SecurityTest, TokenFileIsMadeOnceAndPrivate) {
  const auto first = ReadTokenFile(Path("token"));
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->size(), 64u);
  ASSERT_TRUE(EnsureTokenFile(Path("token")).ok());
  EXPECT_EQ(*ReadTokenFile(Path("token")), *first);
  ASSERT_TRUE(WriteFileAtomically(Path("short"), "abc\n", 0600).ok());
  EXPECT_EQ(ReadTokenFile(Path("short")).status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(WriteFileAtomically(Path("two"), "0123456789abcdef 0123456789abcdef\n", 0600).ok());
  EXPECT_EQ(ReadTokenFile(Path("two")).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SecurityTest, OffLoopbackNeedsTlsAndACallerCheck) {
  WriteCertificate(folder_, "ca", "");
  WriteCertificate(folder_, "server", "ca");
  const auto plain = RpcServer::Start({.address = "0.0.0.0:0", .token_file = Path("token")}, {&service_});
  EXPECT_EQ(plain.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(plain.status().message()), HasSubstr("--tls-cert"));
  const auto open = RpcServer::Start(
      {.address = "0.0.0.0:0", .tls_cert = Path("server.crt"), .tls_key = Path("server.key")}, {&service_});
  EXPECT_EQ(open.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(open.status().message()), HasSubstr("--token-file"));
  EXPECT_EQ(OpenChannel({.address = "10.1.2.3:70", .token_file = Path("token")}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SecurityTest, TlsTakesTokenOrClientCertificate) {
  WriteCertificate(folder_, "ca", "");
  WriteCertificate(folder_, "server", "ca");
  WriteCertificate(folder_, "client", "ca");
  WriteCertificate(folder_, "stranger-ca", "");
  WriteCertificate(folder_, "stranger", "stranger-ca");
  auto server = Serve({.token_file = Path("token"),
                       .tls_cert = Path("server.crt"),
                       .tls_key = Path("server.key"),
                       .tls_client_ca = Path("ca.crt")});
  const std::string address = server->address();
  EXPECT_TRUE(Call({.address = address, .token_file = Path("token"), .tls_ca = Path("ca.crt")}).ok());
  EXPECT_TRUE(
      Call(
          {.address = address, .tls_ca = Path("ca.crt"), .tls_cert = Path("client.crt"), .tls_key = Path("client.key")})
          .ok());
  EXPECT_EQ(Call({.address = address, .tls_ca = Path("ca.crt")}).code(), absl::StatusCode::kUnauthenticated);
  EXPECT_FALSE(Call({.address = address,
                     .tls_ca = Path("ca.crt"),
                     .tls_cert = Path("stranger.crt"),
                     .tls_key = Path("stranger.key")})
                   .ok());
  EXPECT_FALSE(Call({.address = address, .token_file = Path("token"), .tls_ca = Path("stranger-ca.crt")}).ok());
  EXPECT_FALSE(Call({.address = address, .token_file = Path("token")}).ok());
}

TEST_F(SecurityTest, UsedPortIsAClearError) {
  auto server = Serve({.token_file = Path("token")});
  const auto second = RpcServer::Start({.address = server->address(), .token_file = Path("token")}, {&service_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(server->address()));
}

TEST(IsLoopbackAddress, TellsAddressesApart) {
  for (const char* address : {"127.0.0.1:1", "127.5.6.7:80", "localhost:9", "[::1]:80", "::1", "localhost"}) {
    EXPECT_TRUE(IsLoopbackAddress(address)) << address;
  }
  for (const char* address :
       {"0.0.0.0:1", "128.0.0.1:1", "[::]:80", "127.0.0.1.example.org:1", "localhost.example:1", ""}) {
    EXPECT_FALSE(IsLoopbackAddress(address)) << address;
  }
}

}  // namespace
}  // namespace retort

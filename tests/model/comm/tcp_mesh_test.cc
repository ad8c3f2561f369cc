#include "model/comm/tcp_mesh.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace retort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kSecret(32, 's');

// The ranks of a gang as threads of this process.
class Gang {
 public:
  explicit Gang(int size) {
    for (int i = 0; i < size; ++i) {
      auto listener = TcpListener::Listen("127.0.0.1");
      RETORT_CHECK(listener.ok());
      listeners_.push_back(*std::move(listener));
      addresses_.push_back(listeners_.back().address());
    }
  }

  TcpMeshOptions Options(int rank) const {
    TcpMeshOptions options;
    options.rank = rank;
    options.addresses = addresses_;
    options.generation = 5;
    options.secret = kSecret;
    return options;
  }

  // Runs `body` on every rank's mesh.
  void Run(const std::function<void(TcpMesh&)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < static_cast<int>(addresses_.size()); ++rank) {
      threads.emplace_back([&, rank] {
        auto mesh = TcpMesh::Connect(listeners_[rank], Options(rank));
        ASSERT_TRUE(mesh.ok()) << mesh.status();
        body(**mesh);
      });
    }
    for (auto& thread : threads) thread.join();
  }

  const TcpListener& listener(int rank) const { return listeners_[rank]; }

 private:
  std::vector<TcpListener> listeners_;
  std::vector<std::string> addresses_;
};

// A connection to `address` ("127.0.0.1:port") by somebody who is no rank.
UniqueFd Stranger(const std::string& address) {
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  RETORT_CHECK(::connect(fd.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0);
  return fd;
}

// Sizes far above the socket buffers in every direction at once: with blocking sends all ranks would wait for ever.
TEST(TcpMeshTest, EveryoneSendsMuchToEveryoneAtOnce) {
  constexpr size_t kMany = 3 << 20;
  for (const int size : {1, 2, 4}) {
    Gang gang(size);
    gang.Run([&](TcpMesh& mesh) {
      for (int round = 0; round < 3; ++round) {
        std::vector<std::string> out(size);
        std::vector<std::string> in(size);
        std::vector<ConstBytes> send;
        std::vector<MutableBytes> receive;
        for (int peer = 0; peer < size; ++peer) {
          // Rank i sends i * kMany / 4 + j bytes to j, so lengths differ by direction and some are nothing.
          out[peer] = std::string(mesh.rank() * kMany / 4 + peer, static_cast<char>('a' + mesh.rank()));
          in[peer] = std::string(peer * kMany / 4 + mesh.rank(), '?');
          send.push_back({out[peer].data(), out[peer].size()});
          receive.push_back({in[peer].data(), in[peer].size()});
        }
        ASSERT_TRUE(mesh.Exchange(send, receive).ok());
        for (int peer = 0; peer < size; ++peer) {
          ASSERT_EQ(in[peer], std::string(in[peer].size(), static_cast<char>('a' + peer)));
        }
      }
    });
  }
}

TEST(TcpMeshTest, MessagesOfAnyLengthReachEveryone) {
  Gang gang(3);
  gang.Run([](TcpMesh& mesh) {
    auto messages = mesh.GatherMessages(std::string(mesh.rank(), 'x'), 10);
    ASSERT_TRUE(messages.ok()) << messages.status();
    EXPECT_THAT(*messages, ElementsAre("", "x", "xx"));
  });
}

TEST(TcpMeshTest, ALongMessageIsRefusedByTheReceiver) {
  Gang gang(2);
  gang.Run([](TcpMesh& mesh) {
    auto messages = mesh.GatherMessages(std::string(mesh.rank() == 0 ? 100 : 1, 'x'), mesh.rank() == 0 ? 100 : 10);
    if (mesh.rank() == 1) {
      EXPECT_EQ(messages.status().code(), absl::StatusCode::kInternal);
    }
  });
}

TEST(TcpMeshTest, SendFromReachesThoseWhoWantIt) {
  Gang gang(3);
  gang.Run([](TcpMesh& mesh) {
    std::string bytes = mesh.rank() == 1 ? "state" : "-----";
    ASSERT_TRUE(SendFrom(mesh, 1, {true, false, false}, {bytes.data(), bytes.size()}).ok());
    EXPECT_EQ(bytes, mesh.rank() == 2 ? "-----" : "state");
  });
}

TEST(TcpMeshTest, APeerThatGoesAwayIsKnownAtOnce) {
  Gang gang(2);
  const absl::Time start = absl::Now();
  gang.Run([](TcpMesh& mesh) {
    if (mesh.rank() == 1) return;  // its mesh is torn down
    char byte = 0;
    const absl::Status status = AllGather(mesh, {&byte, 1}, {{&byte, 1}, {&byte, 1}});
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(status.message(), HasSubstr("rank 1"));
  });
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
}

TEST(TcpMeshTest, CheckPeersSeesThemGoWithoutAnExchange) {
  Gang gang(2);
  gang.Run([](TcpMesh& mesh) {
    EXPECT_TRUE(mesh.GatherMessages("", 0).ok());
    if (mesh.rank() == 1) return;
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    while (mesh.CheckPeers().ok() && absl::Now() < deadline) std::this_thread::yield();
    EXPECT_EQ(mesh.CheckPeers().code(), absl::StatusCode::kUnavailable);
  });
}

TEST(TcpMeshTest, RanksThatDisagreeAboutSizesFailInsteadOfMixingUpBytes) {
  Gang gang(2);
  gang.Run([](TcpMesh& mesh) {
    std::string bytes(100, 'x');
    std::string room(100, '?');
    const size_t other = 1 - mesh.rank();
    std::vector<ConstBytes> send(2);
    std::vector<MutableBytes> receive(2);
    send[other] = {bytes.data(), mesh.rank() == 0 ? size_t{100} : size_t{50}};
    receive[other] = {room.data(), 100};
    const absl::Status status = mesh.Exchange(send, receive);
    if (mesh.rank() == 0) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
    }
  });
}

TEST(TcpMeshTest, AbortWakesAWaitingRank) {
  Gang gang(2);
  gang.Run([](TcpMesh& mesh) {
    char byte = 0;
    std::vector<MutableBytes> receive(2);
    receive[1 - mesh.rank()] = {&byte, 1};
    std::thread abort;
    if (mesh.rank() == 0) abort = std::thread([&] { mesh.Abort(); });
    const absl::Status status = mesh.Exchange(std::vector<ConstBytes>(2), receive);  // nobody sends
    if (abort.joinable()) abort.join();
    EXPECT_EQ(status.code(), mesh.rank() == 0 ? absl::StatusCode::kAborted : absl::StatusCode::kUnavailable) << status;
  });
}

TEST(TcpMeshTest, StrangersAndStaleRanksDoNotDisturbTheGang) {
  Gang gang(2);
  UniqueFd silent = Stranger(gang.listener(0).address());
  UniqueFd talker = Stranger(gang.listener(0).address());
  ASSERT_GT(::send(talker.get(), "GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\nmore and more", 60, 0), 0);

  std::optional<absl::Status> stale;
  std::optional<absl::Status> wrong_secret;
  std::thread stale_rank([&] {
    TcpMeshOptions options = gang.Options(1);
    options.generation = 4;
    options.connect_timeout = absl::Milliseconds(300);
    stale = TcpMesh::Connect(gang.listener(1), options).status();
  });
  std::thread impostor([&] {
    TcpMeshOptions options = gang.Options(1);
    options.secret = std::string(32, 'z');
    options.connect_timeout = absl::Milliseconds(300);
    wrong_secret = TcpMesh::Connect(gang.listener(1), options).status();
  });
  std::thread server([&] {
    auto mesh = TcpMesh::Connect(gang.listener(0), gang.Options(0));
    ASSERT_TRUE(mesh.ok()) << mesh.status();
    char byte = 'a';
    char all[2] = {};
    ASSERT_TRUE(AllGather(**mesh, {&byte, 1}, {{&all[0], 1}, {&all[1], 1}}).ok());
    EXPECT_EQ(all[1], 'b');
  });
  stale_rank.join();
  impostor.join();
  auto mesh = TcpMesh::Connect(gang.listener(1), gang.Options(1));
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  char byte = 'b';
  char all[2] = {};
  EXPECT_TRUE(AllGather(**mesh, {&byte, 1}, {{&all[0], 1}, {&all[1], 1}}).ok());
  EXPECT_EQ(all[0], 'a');
  server.join();
  EXPECT_EQ(stale->code(), absl::StatusCode::kDeadlineExceeded) << *stale;
  EXPECT_EQ(wrong_secret->code(), absl::StatusCode::kPermissionDenied) << *wrong_secret;
}

TEST(TcpMeshTest, AMissingRankIsNamedAndANewerMembershipEndsTheWait) {
  Gang gang(2);
  TcpMeshOptions options = gang.Options(0);
  options.connect_timeout = absl::Milliseconds(100);
  absl::Status status = TcpMesh::Connect(gang.listener(0), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(status.message(), HasSubstr("1 (127.0.0.1:"));

  options.connect_timeout = absl::Minutes(1);
  options.superseded = [] { return true; };
  EXPECT_EQ(TcpMesh::Connect(gang.listener(0), options).status().code(), absl::StatusCode::kAborted);
}

// A real process, since only those can be stopped.
TEST(TcpMeshTest, AStoppedPeerIsTaggedAsSilentAndAComputingOneIsNot) {
  Gang gang(2);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    TcpMeshOptions options = gang.Options(1);
    options.heartbeat_interval = absl::Milliseconds(50);
    auto mesh = TcpMesh::Connect(gang.listener(1), options);
    if (!mesh.ok()) ::_exit(1);
    char all[2] = {};
    absl::SleepFor(absl::Milliseconds(900));  // longer than the other's patience, but alive
    if (!AllGather(**mesh, {&all[1], 1}, {{&all[0], 1}, {&all[1], 1}}).ok()) ::_exit(2);
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  TcpMeshOptions options = gang.Options(0);
  options.silence_timeout = absl::Milliseconds(500);
  auto mesh = TcpMesh::Connect(gang.listener(0), options);
  ASSERT_TRUE(mesh.ok()) << mesh.status();
  char all[2] = {};
  EXPECT_TRUE(AllGather(**mesh, {&all[0], 1}, {{&all[0], 1}, {&all[1], 1}}).ok());
  const absl::Status status = AllGather(**mesh, {&all[0], 1}, {{&all[0], 1}, {&all[1], 1}});
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(status.message(), HasSubstr("rank 1"));
  EXPECT_THAT(status.message(), HasSubstr("silent"));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

}  // namespace
}  // namespace retort

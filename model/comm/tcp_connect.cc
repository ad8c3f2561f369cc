#include "model/comm/tcp_connect.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "model/comm/handshake.h"

namespace retort {
namespace {

constexpr absl::Duration kPollSlice = absl::Milliseconds(50);
// A caller that has not proved itself by then is hung up on.
constexpr absl::Duration kHandshakeTimeout = absl::Seconds(5);
constexpr size_t kMaxStrangers = 64;

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t size = 0;
  int family() const { return storage.ss_family; }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
};

absl::StatusOr<SocketAddress> ParseHost(const std::string& host, uint16_t port) {
  SocketAddress address;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&address.storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
  if (::inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(port);
    address.size = sizeof(sockaddr_in);
  } else if (::inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(port);
    address.size = sizeof(sockaddr_in6);
  } else {
    return absl::InvalidArgumentError(absl::StrCat("\"", host, "\" is not an IPv4 or IPv6 address"));
  }
  return address;
}

absl::StatusOr<SocketAddress> ParseAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 1 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is not host:port"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return ParseHost(host, static_cast<uint16_t>(port));
}

void Prepare(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

// Non-blocking reading and writing of the handshake's few bytes, until a deadline.
class Dialogue {
 public:
  Dialogue(int fd, absl::Time deadline, const std::function<bool()>& superseded)
      : fd_(fd), deadline_(deadline), superseded_(superseded) {}

  absl::Status Send(absl::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent > 0) {
        bytes.remove_prefix(static_cast<size_t>(sent));
      } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
        RETURN_IF_ERROR(Wait(POLLOUT));
      } else {
        return absl::UnavailableError(std::strerror(errno));
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> Receive(size_t size_bytes) {
    std::string bytes(size_bytes, '\0');
    for (size_t have = 0; have < size_bytes;) {
      const ssize_t got = ::recv(fd_, bytes.data() + have, size_bytes - have, MSG_DONTWAIT);
      if (got > 0) {
        have += static_cast<size_t>(got);
      } else if (got == 0) {
        return absl::UnavailableError("hung up");
      } else if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
        RETURN_IF_ERROR(Wait(POLLIN));
      } else {
        return absl::UnavailableError(std::strerror(errno));
      }
    }
    return bytes;
  }

  absl::Status Wait(short events) {
    if (superseded_ && superseded_()) return absl::AbortedError("a newer membership is known of");
    if (absl::Now() >= deadline_) return absl::DeadlineExceededError("no answer");
    pollfd polled = {fd_, events, 0};
    ::poll(&polled, 1, static_cast<int>(absl::ToInt64Milliseconds(kPollSlice)));
    return absl::OkStatus();
  }

 private:
  const int fd_;
  const absl::Time deadline_;
  const std::function<bool()>& superseded_;
};

// One attempt to reach a lower rank.
absl::StatusOr<UniqueFd> CallPeer(const TcpMeshOptions& options, int peer, absl::Time deadline) {
  ASSIGN_OR_RETURN(SocketAddress address, ParseAddress(options.addresses[peer]));
  UniqueFd fd(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus("socket", errno);
  Prepare(fd.get());
  Dialogue dialogue(fd.get(), deadline, options.superseded);
  if (::connect(fd.get(), address.get(), address.size) != 0) {
    if (errno != EINPROGRESS) return absl::UnavailableError(std::strerror(errno));
    pollfd polled = {fd.get(), POLLOUT, 0};
    while (::poll(&polled, 1, 0) == 0) RETURN_IF_ERROR(dialogue.Wait(POLLOUT));
    int error = 0;
    socklen_t size = sizeof(error);
    ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return absl::UnavailableError(std::strerror(error));
  }
  const std::string hello = EncodeHello(
      {static_cast<uint32_t>(options.rank), static_cast<uint32_t>(peer), options.generation}, RandomNonce());
  RETURN_IF_ERROR(dialogue.Send(hello));
  ASSIGN_OR_RETURN(const std::string challenge, dialogue.Receive(kChallengeBytes));
  RETURN_IF_ERROR(CheckChallenge(options.secret, hello, challenge));
  RETURN_IF_ERROR(dialogue.Send(MakeProof(options.secret, hello, challenge)));
  ASSIGN_OR_RETURN(const std::string welcome, dialogue.Receive(1));
  if (welcome[0] != kWelcome) return absl::InternalError("not welcomed");
  return fd;
}

// Someone who connected and has yet to prove who he is.
struct Caller {
  UniqueFd fd;
  absl::Time deadline;
  std::string received;
  std::string challenge;  // sent; empty while the hello is awaited
  Hello hello;
};

// Takes what a caller sent and answers. True: proved, and welcomed. Errors: turned away.
absl::StatusOr<bool> Listen(Caller& caller, const TcpMeshOptions& options) {
  char buffer[kHelloBytes + kProofBytes];
  const size_t wanted = caller.challenge.empty() ? kHelloBytes : kHelloBytes + kProofBytes;
  const ssize_t got = ::recv(caller.fd.get(), buffer, wanted - caller.received.size(), MSG_DONTWAIT);
  if (got == 0) return absl::UnavailableError("hung up");
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return false;
    return absl::UnavailableError(std::strerror(errno));
  }
  caller.received.append(buffer, static_cast<size_t>(got));
  if (caller.received.size() < wanted) return false;
  const absl::string_view hello_bytes = absl::string_view(caller.received).substr(0, kHelloBytes);
  std::string reply;
  if (caller.challenge.empty()) {
    ASSIGN_OR_RETURN(caller.hello, DecodeHello(hello_bytes));
    const Hello& hello = caller.hello;
    if (hello.generation != options.generation) {
      return absl::FailedPreconditionError(absl::StrCat("generation ", hello.generation, " is ",
                                                        hello.generation < options.generation ? "stale" : "newer"));
    }
    if (hello.to_rank != static_cast<uint32_t>(options.rank) || hello.from_rank <= hello.to_rank ||
        hello.from_rank >= options.addresses.size()) {
      return absl::InvalidArgumentError(absl::StrCat("rank ", hello.from_rank, " wants rank ", hello.to_rank));
    }
    caller.challenge = MakeChallenge(options.secret, hello_bytes, RandomNonce());
    reply = caller.challenge;
  } else {
    const absl::string_view proof = absl::string_view(caller.received).substr(kHelloBytes);
    RETURN_IF_ERROR(CheckProof(options.secret, hello_bytes, caller.challenge, proof));
    reply = std::string(1, kWelcome);
  }
  // A new connection's buffer holds a reply of this size.
  if (::send(caller.fd.get(), reply.data(), reply.size(), MSG_NOSIGNAL | MSG_DONTWAIT) !=
      static_cast<ssize_t>(reply.size())) {
    return absl::UnavailableError("could not answer");
  }
  return reply.size() == 1;
}

absl::Status AcceptPeers(const TcpListener& listener, const TcpMeshOptions& options, absl::Time deadline,
                         std::vector<UniqueFd>& peers) {
  std::vector<Caller> callers;
  auto missing = [&] {
    std::vector<std::string> ranks;
    for (size_t i = options.rank + 1; i < peers.size(); ++i) {
      if (!peers[i].valid()) ranks.push_back(absl::StrCat(i, " (", options.addresses[i], ")"));
    }
    return ranks;
  };
  while (!missing().empty()) {
    if (options.superseded && options.superseded()) return absl::AbortedError("a newer membership is known of");
    const absl::Time now = absl::Now();
    if (now >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("ranks that did not connect: ", absl::StrJoin(missing(), ", ")));
    }
    std::erase_if(callers, [&](const Caller& caller) { return now >= caller.deadline; });
    std::vector<pollfd> polled;
    for (const Caller& caller : callers) polled.push_back({caller.fd.get(), POLLIN, 0});
    if (callers.size() < kMaxStrangers) polled.push_back({listener.fd(), POLLIN, 0});
    ::poll(polled.data(), polled.size(), static_cast<int>(absl::ToInt64Milliseconds(kPollSlice)));
    for (size_t k = callers.size(); k-- > 0;) {
      if (polled[k].revents == 0) continue;
      const absl::StatusOr<bool> proved = Listen(callers[k], options);
      if (proved.ok() && !*proved) continue;
      if (proved.ok()) {
        peers[callers[k].hello.from_rank] = std::move(callers[k].fd);
      } else {
        spdlog::warn("gang_caller_refused generation={} reason=\"{}\"", options.generation,
                     std::string(proved.status().message()));
      }
      callers.erase(callers.begin() + static_cast<ptrdiff_t>(k));
    }
    if (polled.back().fd != listener.fd() || polled.back().revents == 0) continue;
    UniqueFd fd(::accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) continue;  // it hung up in between
    Prepare(fd.get());
    callers.push_back({std::move(fd), now + kHandshakeTimeout, "", "", {}});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TcpListener> TcpListener::Listen(const std::string& host) {
  ASSIGN_OR_RETURN(SocketAddress address, ParseHost(host, 0));
  UniqueFd fd(::socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus("socket", errno);
  if (::bind(fd.get(), address.get(), address.size) != 0 || ::listen(fd.get(), 128) != 0 ||
      ::getsockname(fd.get(), address.get(), &address.size) != 0) {
    return absl::UnavailableError(absl::StrCat("listen for the gang on ", host, ": ", std::strerror(errno),
                                               "; is it an address of this machine?"));
  }
  const uint16_t port = address.family() == AF_INET
                            ? ntohs(reinterpret_cast<sockaddr_in*>(&address.storage)->sin_port)
                            : ntohs(reinterpret_cast<sockaddr_in6*>(&address.storage)->sin6_port);
  return TcpListener(std::move(fd),
                     address.family() == AF_INET ? absl::StrCat(host, ":", port) : absl::StrCat("[", host, "]:", port));
}

absl::StatusOr<std::vector<UniqueFd>> ConnectPeers(const TcpListener& listener, const TcpMeshOptions& options) {
  if (options.secret.size() != kSecretBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the gang's secret has ", options.secret.size(), " bytes, not 32"));
  }
  const absl::Time deadline = absl::Now() + options.connect_timeout;
  std::vector<UniqueFd> peers(options.addresses.size());
  for (int peer = 0; peer < options.rank; ++peer) {
    while (!peers[peer].valid()) {
      absl::StatusOr<UniqueFd> fd = CallPeer(options, peer, deadline);
      if (fd.ok()) {
        peers[peer] = *std::move(fd);
        break;
      }
      const std::string what = absl::StrCat("connect to rank ", peer, " (", options.addresses[peer], ")");
      // The peer may not have learnt of this membership yet, or listen anew in a moment.
      if (!absl::IsUnavailable(fd.status())) return WithContext(fd.status(), what);
      if (absl::Now() >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat(what, ": ", fd.status().message()));
      }
      if (options.superseded && options.superseded()) return absl::AbortedError("a newer membership is known of");
      absl::SleepFor(kPollSlice);
    }
  }
  RETURN_IF_ERROR(WithContext(AcceptPeers(listener, options, deadline, peers), "form the gang"));
  return peers;
}

}  // namespace retort

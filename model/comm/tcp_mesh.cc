#include "model/comm/tcp_mesh.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "model/comm/tcp_connect.h"

namespace retort {
namespace {

constexpr uint32_t kFrameMagic = 0x52544731;
enum FrameKind : uint32_t { kHeartbeat = 1, kTensor = 2, kMessage = 3 };

// In front of everything, in the byte order of x86 and ARM; peers of one gang run the same binary.
struct FrameHeader {
  uint32_t magic = kFrameMagic;
  uint32_t kind = kHeartbeat;
  uint64_t sequence = 0;  // of the exchange
  uint64_t size_bytes = 0;
};
static_assert(sizeof(FrameHeader) == 24);

constexpr int kPollMilliseconds = 200;

}  // namespace

struct TcpMesh::Peer {
  UniqueFd fd;
  size_t heartbeat_left = 0;  // bytes of a heartbeat frame still to be sent before anything else
  FrameHeader in_header;      // being received
  size_t in_header_got = 0;
  absl::Time last_heard;
};

struct TcpMesh::Outgoing {
  FrameHeader header;
  const char* data = nullptr;
  size_t sent = 0;  // of header and data
  bool wanted = false;
  size_t total() const { return wanted ? sizeof(FrameHeader) + header.size_bytes : 0; }
  bool done() const { return sent == total(); }
};

struct TcpMesh::Incoming {
  uint32_t kind = kTensor;
  char* data = nullptr;   // kTensor: size_bytes of room
  size_t size_bytes = 0;  // kTensor: as agreed; kMessage: as the header says
  size_t max_bytes = 0;   // kMessage
  std::string* message = nullptr;
  bool wanted = false;
  bool has_header = false;
  size_t got = 0;
  bool done() const { return !wanted || (has_header && got == size_bytes); }
};

TcpMesh::TcpMesh(TcpMeshOptions options) : options_(std::move(options)) {}

absl::StatusOr<std::unique_ptr<TcpMesh>> TcpMesh::Connect(const TcpListener& listener, TcpMeshOptions options) {
  const int size = static_cast<int>(options.addresses.size());
  RETORT_CHECK(options.rank >= 0 && options.rank < size);
  ASSIGN_OR_RETURN(std::vector<UniqueFd> fds, ConnectPeers(listener, options));
  std::unique_ptr<TcpMesh> mesh(new TcpMesh(std::move(options)));
  {
    absl::MutexLock lock(&mesh->mu_);
    mesh->peers_ = std::vector<Peer>(size);
    for (int i = 0; i < size; ++i) {
      mesh->fds_.push_back(fds[i].get());
      mesh->peers_[i].fd = std::move(fds[i]);
    }
  }
  if (size > 1) mesh->keep_alive_ = std::thread([m = mesh.get()] { m->KeepAlive(); });
  return mesh;
}

TcpMesh::~TcpMesh() {
  if (keep_alive_.joinable()) {
    stop_.Notify();
    keep_alive_.join();
  }
}

void TcpMesh::Abort() {
  aborted_ = true;
  for (const int fd : fds_) {
    if (fd >= 0) ::shutdown(fd, SHUT_RDWR);
  }
}

absl::Status TcpMesh::Lost(int peer, const std::string& why) const {
  if (aborted_) return absl::AbortedError("the gang was aborted");
  return absl::UnavailableError(absl::StrCat("rank ", peer, " (", options_.addresses[peer], ") ", why));
}

absl::Status TcpMesh::CheckPeers() const {
  if (aborted_) return absl::AbortedError("the gang was aborted");
  std::vector<pollfd> polled;
  // poll() passes over negative descriptors, so that the own entry does no harm.
  for (const int fd : fds_) polled.push_back({fd, POLLRDHUP, 0});
  if (::poll(polled.data(), polled.size(), 0) <= 0) return absl::OkStatus();
  for (size_t i = 0; i < polled.size(); ++i) {
    if (polled[i].revents != 0) return Lost(static_cast<int>(i), "closed the connection");
  }
  return absl::OkStatus();
}

void TcpMesh::KeepAlive() {
  while (!stop_.WaitForNotificationWithTimeout(options_.heartbeat_interval)) {
    if (!mu_.TryLock()) continue;  // an exchange is under way and sends its own
    for (int i = 0; i < size(); ++i) {
      if (i != rank()) SendHeartbeat(i);
    }
    mu_.Unlock();
  }
}

// Best effort: a broken connection or a full buffer shows at the next exchange.
void TcpMesh::SendHeartbeat(int i) {
  Peer& peer = peers_[i];
  if (peer.heartbeat_left == 0) peer.heartbeat_left = sizeof(FrameHeader);
  const FrameHeader header;
  const char* bytes = reinterpret_cast<const char*>(&header) + (sizeof(header) - peer.heartbeat_left);
  const ssize_t sent = ::send(peer.fd.get(), bytes, peer.heartbeat_left, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent > 0) {
    peer.heartbeat_left -= static_cast<size_t>(sent);
  } else if (peer.heartbeat_left == sizeof(FrameHeader)) {
    peer.heartbeat_left = 0;
  }
}

absl::Status TcpMesh::Send(int i, Outgoing& out) {
  Peer& peer = peers_[i];
  if (peer.heartbeat_left > 0) {
    SendHeartbeat(i);
    if (peer.heartbeat_left > 0) return absl::OkStatus();
  }
  while (!out.done()) {
    const bool in_header = out.sent < sizeof(FrameHeader);
    const char* from =
        in_header ? reinterpret_cast<const char*>(&out.header) + out.sent : out.data + (out.sent - sizeof(FrameHeader));
    const size_t left = (in_header ? sizeof(FrameHeader) : out.total()) - out.sent;
    const int more = in_header && out.header.size_bytes > 0 ? MSG_MORE : 0;
    const ssize_t sent = ::send(peer.fd.get(), from, left, MSG_NOSIGNAL | MSG_DONTWAIT | more);
    if (sent < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::OkStatus();
      if (errno == EINTR) continue;
      return Lost(i, absl::StrCat("is gone: ", std::strerror(errno)));
    }
    out.sent += static_cast<size_t>(sent);
    peer.last_heard = absl::Now();
  }
  return absl::OkStatus();
}

absl::Status TcpMesh::TakeHeader(int i, Incoming& in) {
  Peer& peer = peers_[i];
  const FrameHeader header = peer.in_header;
  peer.in_header_got = 0;
  if (header.magic != kFrameMagic) return absl::InternalError(absl::StrCat("rank ", i, " sent what is no frame"));
  if (header.kind == kHeartbeat) return absl::OkStatus();
  const bool expected = !in.done() && header.kind == in.kind && header.sequence == sequence_ &&
                        (in.kind == kMessage ? header.size_bytes <= in.max_bytes : header.size_bytes == in.size_bytes);
  if (!expected) {
    return absl::InternalError(absl::StrCat(
        "rank ", i, " is out of step: it sent ", header.size_bytes, " bytes of kind ", header.kind, " in exchange ",
        header.sequence, "; this rank is in exchange ", sequence_, " and waits for ", in.done() ? 0 : in.size_bytes));
  }
  in.has_header = true;
  if (in.kind == kMessage) {
    in.message->resize(header.size_bytes);
    in.data = in.message->data();
    in.size_bytes = header.size_bytes;
  }
  return absl::OkStatus();
}

// Reads what there is for this exchange and not a byte of the next one. A peer that has not had all of this rank's
// frame can only send heartbeats besides its own frame.
absl::Status TcpMesh::Receive(int i, Incoming& in) {
  Peer& peer = peers_[i];
  while (true) {
    const bool in_payload = in.has_header && in.got < in.size_bytes;
    char* to = in_payload ? in.data + in.got : reinterpret_cast<char*>(&peer.in_header) + peer.in_header_got;
    const size_t room = in_payload ? in.size_bytes - in.got : sizeof(FrameHeader) - peer.in_header_got;
    const ssize_t got = ::recv(peer.fd.get(), to, room, MSG_DONTWAIT);
    if (got < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::OkStatus();
      if (errno == EINTR) continue;
      return Lost(i, absl::StrCat("is gone: ", std::strerror(errno)));
    }
    if (got == 0) return Lost(i, "closed the connection");
    peer.last_heard = absl::Now();
    if (in_payload) {
      in.got += static_cast<size_t>(got);
    } else {
      peer.in_header_got += static_cast<size_t>(got);
      if (peer.in_header_got == sizeof(FrameHeader)) RETURN_IF_ERROR(TakeHeader(i, in));
    }
    if (in.done()) return absl::OkStatus();
  }
}

absl::Status TcpMesh::Run(std::vector<Outgoing>& out, std::vector<Incoming>& in) {
  if (aborted_) return absl::AbortedError("the gang was aborted");
  const absl::Time start = absl::Now();
  absl::Time next_heartbeat = start + options_.heartbeat_interval;
  for (Peer& peer : peers_) peer.last_heard = start;
  std::vector<pollfd> polled;
  std::vector<int> ranks;
  while (true) {
    polled.clear();
    ranks.clear();
    for (int i = 0; i < size(); ++i) {
      if (i == rank() || (out[i].done() && in[i].done())) continue;
      polled.push_back({peers_[i].fd.get(), static_cast<short>(POLLIN | (out[i].done() ? 0 : POLLOUT)), 0});
      ranks.push_back(i);
    }
    if (polled.empty()) return absl::OkStatus();
    if (::poll(polled.data(), polled.size(), kPollMilliseconds) < 0 && errno != EINTR) {
      return ErrnoStatus("poll the gang's connections", errno);
    }
    for (size_t k = 0; k < polled.size(); ++k) {
      const int i = ranks[k];
      if ((polled[k].revents & POLLOUT) != 0) RETURN_IF_ERROR(Send(i, out[i]));
      if ((polled[k].revents & (POLLIN | POLLHUP | POLLERR)) != 0) RETURN_IF_ERROR(Receive(i, in[i]));
    }
    const absl::Time now = absl::Now();
    const bool superseded = options_.superseded && options_.superseded();
    const absl::Duration patience =
        superseded ? std::min(options_.superseded_silence_timeout, options_.silence_timeout) : options_.silence_timeout;
    for (const int i : ranks) {
      if ((out[i].done() && in[i].done()) || now - peers_[i].last_heard < patience) continue;
      return absl::DeadlineExceededError(absl::StrCat("rank ", i, " (", options_.addresses[i], ") is silent since ",
                                                      absl::FormatDuration(now - peers_[i].last_heard),
                                                      ": its process is stopped or its machine unreachable"));
    }
    if (now >= next_heartbeat) {
      next_heartbeat = now + options_.heartbeat_interval;
      for (int i = 0; i < size(); ++i) {
        if (i != rank() && out[i].done()) SendHeartbeat(i);
      }
    }
  }
}

absl::Status TcpMesh::Exchange(absl::Span<const ConstBytes> send, absl::Span<const MutableBytes> receive) {
  const auto ranks = static_cast<size_t>(size());
  RETORT_CHECK(send.size() == ranks && receive.size() == ranks);
  RETORT_CHECK(send[rank()].size_bytes == receive[rank()].size_bytes);
  if (send[rank()].size_bytes > 0 && send[rank()].data != receive[rank()].data) {
    std::memmove(receive[rank()].data, send[rank()].data, send[rank()].size_bytes);
  }
  absl::MutexLock lock(&mu_);
  ++sequence_;
  std::vector<Outgoing> out(ranks);
  std::vector<Incoming> in(ranks);
  for (size_t i = 0; i < ranks; ++i) {
    if (i == static_cast<size_t>(rank())) continue;
    out[i].wanted = send[i].size_bytes > 0;
    out[i].header = {kFrameMagic, kTensor, sequence_, send[i].size_bytes};
    out[i].data = static_cast<const char*>(send[i].data);
    in[i].wanted = receive[i].size_bytes > 0;
    in[i].data = static_cast<char*>(receive[i].data);
    in[i].size_bytes = receive[i].size_bytes;
  }
  return Run(out, in);
}

absl::StatusOr<std::vector<std::string>> TcpMesh::GatherMessages(const std::string& mine, size_t max_bytes) {
  if (mine.size() > max_bytes) {
    return absl::InternalError(absl::StrCat("a message of ", mine.size(), " bytes is above the limit of ", max_bytes));
  }
  const auto ranks = static_cast<size_t>(size());
  std::vector<std::string> messages(ranks);
  absl::MutexLock lock(&mu_);
  ++sequence_;
  std::vector<Outgoing> out(ranks);
  std::vector<Incoming> in(ranks);
  for (size_t i = 0; i < ranks; ++i) {
    if (i == static_cast<size_t>(rank())) {
      messages[i] = mine;
      continue;
    }
    out[i].wanted = true;
    out[i].header = {kFrameMagic, kMessage, sequence_, mine.size()};
    out[i].data = mine.data();
    in[i].wanted = true;
    in[i].kind = kMessage;
    in[i].max_bytes = max_bytes;
    in[i].message = &messages[i];
  }
  RETURN_IF_ERROR(Run(out, in));
  return messages;
}

}  // namespace retort

// The ranks of a gang joined pairwise by TCP, for host memory.
//
// Trouble is told apart: a peer whose process died is known at once (kUnavailable), one that is stopped or unreachable
// after `silence_timeout` (kDeadlineExceeded). A rank that computes is not silent: a thread of its own says once a
// second that it lives, between exchanges.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/file.h"
#include "model/comm/communicator.h"

namespace retort {

// A listening socket; outlives the meshes that a rank is part of, one after the other.
class TcpListener {
 public:
  // Listens on any free port of the numeric address `host`. Errors: kInvalidArgument (not an IPv4 or IPv6 address),
  // kUnavailable (no such interface, no free port).
  static absl::StatusOr<TcpListener> Listen(const std::string& host);

  // "127.0.0.1:4711", "[::1]:4711".
  const std::string& address() const { return address_; }
  int fd() const { return fd_.get(); }

 private:
  TcpListener(UniqueFd fd, std::string address) : fd_(std::move(fd)), address_(std::move(address)) {}
  UniqueFd fd_;
  std::string address_;
};

struct TcpMeshOptions {
  int rank = 0;
  std::vector<std::string> addresses;  // of all ranks, in rank order
  uint64_t generation = 0;             // connections of other generations are refused
  std::string secret;                  // 32 bytes
  absl::Duration connect_timeout = absl::Seconds(30);
  absl::Duration silence_timeout = absl::Seconds(30);
  // Whether a newer membership is known of. Then connecting stops, and a silent peer is given up after
  // `superseded_silence_timeout`. Called often, from the thread that waits. Empty: never.
  std::function<bool()> superseded;
  absl::Duration superseded_silence_timeout = absl::Seconds(3);
  absl::Duration heartbeat_interval = absl::Seconds(1);
};

class TcpMesh final : public Communicator {
 public:
  // Connects to the ranks below and waits for those above. Strangers and stale ranks are turned away without disturbing
  // it. Errors: kDeadlineExceeded (which rank is missing), kAborted (superseded), kInvalidArgument (an address).
  static absl::StatusOr<std::unique_ptr<TcpMesh>> Connect(const TcpListener& listener, TcpMeshOptions options);
  ~TcpMesh() override;

  int rank() const override { return options_.rank; }
  int size() const override { return static_cast<int>(options_.addresses.size()); }
  absl::Status Exchange(absl::Span<const ConstBytes> send, absl::Span<const MutableBytes> receive) override;
  void Abort() override;

  absl::Duration silence_timeout() const { return options_.silence_timeout; }
  // Looks, without waiting, whether a peer has hung up. For waits on something else than this mesh. Errors:
  // kUnavailable, kAborted.
  absl::Status CheckPeers() const;

  // All-gather of messages whose lengths the others do not know. Errors: as Exchange; kInternal also when one is above
  // `max_bytes`.
  absl::StatusOr<std::vector<std::string>> GatherMessages(const std::string& mine, size_t max_bytes);

 private:
  struct Peer;
  struct Incoming;
  struct Outgoing;

  explicit TcpMesh(TcpMeshOptions options);
  absl::Status Run(std::vector<Outgoing>& out, std::vector<Incoming>& in) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Send(int peer, Outgoing& out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Receive(int peer, Incoming& in) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status TakeHeader(int peer, Incoming& in) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SendHeartbeat(int peer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Lost(int peer, const std::string& why) const;
  void KeepAlive();

  const TcpMeshOptions options_;
  absl::Mutex mu_;  // held for a whole exchange
  std::vector<Peer> peers_ ABSL_GUARDED_BY(mu_);
  uint64_t sequence_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<int> fds_;  // of peers_, for Abort; constant once connected
  std::atomic<bool> aborted_ = false;
  absl::Notification stop_;
  std::thread keep_alive_;
};

}  // namespace retort

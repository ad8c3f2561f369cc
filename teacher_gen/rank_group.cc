#include "teacher_gen/rank_group.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/id.h"
#include "common/status.h"
#include "model/comm/handshake.h"
#include "model/device.h"

namespace retort {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
// Loading a large model takes minutes, and not all ranks are done at once.
constexpr absl::Duration kSilenceTimeout = absl::Minutes(2);
constexpr size_t kMaxLine = 1 << 16;

struct Pipe {
  UniqueFd read, write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus("make a pipe", errno);
  return Pipe{UniqueFd(fds[0]), UniqueFd(fds[1])};
}

// A line of a few words from a process that is starting.
absl::StatusOr<std::string> ReadLine(int fd, const std::string& from) {
  const absl::Time deadline = absl::Now() + kStartTimeout;
  std::string line;
  while (line.size() < kMaxLine) {
    pollfd polled{fd, POLLIN, 0};
    const auto left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0) return absl::DeadlineExceededError(absl::StrCat(from, " says nothing"));
    if (poll(&polled, 1, static_cast<int>(left)) < 0 && errno != EINTR) return ErrnoStatus("poll a pipe", errno);
    if (polled.revents == 0) continue;
    char c = 0;
    const ssize_t got = read(fd, &c, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return absl::UnavailableError(absl::StrCat(from, " ended before it had started"));
    if (c == '\n') return line;
    line.push_back(c);
  }
  return absl::InternalError(absl::StrCat(from, " says too much"));
}

absl::Status WriteAll(int fd, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t wrote = write(fd, text.data() + done, text.size() - done);
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote <= 0) return ErrnoStatus("write to a rank", errno);
    done += static_cast<size_t>(wrote);
  }
  return absl::OkStatus();
}

std::string FromHex(absl::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

}  // namespace

absl::Status RankGroup::StartOthers(int size, const std::vector<std::string>& argv, const std::string& own_address,
                                    TcpMeshOptions& options) {
  signal(SIGPIPE, SIG_IGN);
  ASSIGN_OR_RETURN(const std::string folder, ProgramFolder());
  std::vector<Pipe> to;
  options.addresses = {own_address};
  for (int rank = 1; rank < size; ++rank) {
    ASSIGN_OR_RETURN(Pipe down, MakePipe());
    ASSIGN_OR_RETURN(Pipe up, MakePipe());
    SpawnOptions spawn;
    spawn.argv = {folder + "/retort-teacher"};
    spawn.argv.insert(spawn.argv.end(), argv.begin(), argv.end());
    spawn.argv.insert(spawn.argv.end(), {kRankFlag, absl::StrCat(rank)});
    spawn.environment = EnvironmentWith({});
    spawn.stdin_fd = down.read.get();
    spawn.stdout_fd = up.write.get();
    spawn.stderr_fd = STDERR_FILENO;
    spawn.new_session = false;
    spawn.die_with_thread = true;  // this is the main thread
    ASSIGN_OR_RETURN(ChildProcess child, SpawnProcess(spawn));
    children_.push_back(std::move(child));
    up.write = UniqueFd();  // so that its end shows
    ASSIGN_OR_RETURN(std::string address, ReadLine(up.read.get(), absl::StrCat("rank ", rank)));
    options.addresses.push_back(std::move(address));
    to.push_back(std::move(down));
  }
  const std::string secret = RandomHex(2 * kSecretBytes);
  options.secret = FromHex(secret);
  const std::string line = absl::StrCat(absl::StrJoin(options.addresses, ","), " ", secret, "\n");
  for (const Pipe& pipe : to) RETURN_IF_ERROR(WriteAll(pipe.write.get(), line));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Start(int rank, int size, bool cuda,
                                                            const std::vector<std::string>& argv) {
  std::unique_ptr<RankGroup> group(new RankGroup());
  ASSIGN_OR_RETURN(TcpListener listener, TcpListener::Listen("127.0.0.1"));
  group->listener_ = std::make_unique<TcpListener>(std::move(listener));
  TcpMeshOptions options;
  options.rank = rank;
  options.silence_timeout = kSilenceTimeout;
  if (rank == 0) {
    RETURN_IF_ERROR(group->StartOthers(size, argv, group->listener_->address(), options));
  } else {
    RETURN_IF_ERROR(WriteAll(STDOUT_FILENO, group->listener_->address() + "\n"));
    ASSIGN_OR_RETURN(const std::string line, ReadLine(STDIN_FILENO, "rank 0"));
    const std::pair<std::string, std::string> parts = absl::StrSplit(line, absl::MaxSplits(' ', 1));
    options.addresses = absl::StrSplit(parts.first, ',');
    options.secret = FromHex(parts.second);
    if (static_cast<int>(options.addresses.size()) != size || options.secret.size() != kSecretBytes) {
      return absl::InvalidArgumentError(absl::StrCat(kRankFlag, " is for the program's own use"));
    }
  }
  ASSIGN_OR_RETURN(group->mesh_, TcpMesh::Connect(*group->listener_, std::move(options)));
  if (cuda) {
    // NCCL refuses two ranks of one host on one GPU: it is told that they are on two. What the user has set stays.
    if (CudaDevices() < size) setenv("NCCL_HOSTID", absl::StrCat("rank-", rank).c_str(), /*overwrite=*/0);
    ASSIGN_OR_RETURN(group->device_, OpenNccl(*group->mesh_, CudaDevice(rank).index()));
    group->tensors_ = std::make_unique<TensorGroup>(*group->device_);
  } else {
    group->tensors_ = std::make_unique<TensorGroup>(*group->mesh_);
  }
  return group;
}

RankGroup::~RankGroup() {
  tensors_.reset();
  device_.reset();
  if (mesh_ != nullptr) mesh_->Abort();
  for (const ChildProcess& child : children_) {
    if (WaitProcess(child.pid, absl::Seconds(5)).ok()) continue;
    kill(child.pid, SIGKILL);
    (void)WaitProcess(child.pid, absl::Seconds(5));
  }
}

absl::Status RankGroup::Broadcast(std::vector<std::string>& lines) {
  const bool first = mesh_->rank() == 0;
  const std::vector<bool> everyone(static_cast<size_t>(mesh_->size()), true);
  std::vector<uint64_t> sizes;
  std::string text;
  if (first) {
    for (const std::string& line : lines) sizes.push_back(line.size());
    text = absl::StrJoin(lines, "");
  }
  uint64_t counts[2] = {sizes.size(), text.size()};
  RETURN_IF_ERROR(SendFrom(*mesh_, 0, everyone, {counts, sizeof(counts)}));
  sizes.resize(counts[0]);
  text.resize(counts[1]);
  if (!sizes.empty()) RETURN_IF_ERROR(SendFrom(*mesh_, 0, everyone, {sizes.data(), sizes.size() * sizeof(uint64_t)}));
  if (!text.empty()) RETURN_IF_ERROR(SendFrom(*mesh_, 0, everyone, {text.data(), text.size()}));
  if (first) return absl::OkStatus();
  lines.clear();
  size_t at = 0;
  for (const uint64_t size : sizes) {
    lines.push_back(text.substr(at, size));
    at += size;
  }
  return absl::OkStatus();
}

}  // namespace retort

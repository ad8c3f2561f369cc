// retort-coordinator: parses flags, runs a CoordinatorServer until SIGTERM or SIGINT.
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/log.h"
#include "common/version.h"
#include "coordinator/flags.h"
#include "coordinator/server.h"

namespace {

// One heap per thread would cost an idle coordinator more memory than its state.
constexpr int kMaxHeaps = 2;

int Fail(const absl::Status& status, int exit_code) {
  std::cerr << "retort-coordinator: " << std::string(status.message()) << "\n";
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  mallopt(M_ARENA_MAX, kMaxHeaps);
  const char* home = std::getenv("HOME");
  const auto flags = retort::ParseCoordinatorFlags(argc, argv, home == nullptr ? "" : home);
  if (!flags.ok()) return Fail(flags.status(), 2);
  if (flags->show_help) {
    std::cout << flags->help;
    return 0;
  }
  retort::InitLogging("coordinator");

  // Blocked before any thread starts, so that sigwait below gets them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  if (const absl::Status status = retort::MakeFolders(flags->state_dir, 0700); !status.ok()) return Fail(status, 1);
  if (!flags->server.token_file.empty()) {
    if (const absl::Status status = retort::EnsureTokenFile(flags->server.token_file); !status.ok())
      return Fail(status, 1);
  }
  auto server = retort::CoordinatorServer::Start(flags->state_dir, flags->server, flags->options);
  if (!server.ok()) return Fail(server.status(), 1);
  spdlog::info("listening address={} state_dir={} version={} pid={}", (*server)->address(), flags->state_dir,
               std::string(retort::kVersion), getpid());
  if (!flags->address_file.empty()) {
    const absl::Status status =
        retort::WriteFileAtomically(flags->address_file, absl::StrCat((*server)->address(), "\n"));
    if (!status.ok()) return Fail(status, 1);
  }
  int received = 0;
  sigwait(&signals, &received);
  spdlog::info("stopping signal={}", received);
  server->reset();
  spdlog::info("stopped");
  return 0;
}

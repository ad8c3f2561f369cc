#include "common/fault.h"

#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace retort::internal {
namespace {

constexpr int kFaultExitCode = 70;

enum class Action { kKill, kExit, kDelay };

struct Fault {
  std::string point;
  int64_t passages_left = 0;
  Action action = Action::kKill;
  absl::Duration delay;
};

[[noreturn]] void RefuseFault(const std::string& word) {
  std::fprintf(stderr, "RETORT_FAULT: \"%s\" is not point:n[:kill|exit|<milliseconds>]\n", word.c_str());
  _exit(kFaultExitCode);
}

class Faults {
 public:
  Faults() {
    const char* text = std::getenv("RETORT_FAULT");
    if (text == nullptr || *text == '\0') return;
    for (const std::string& word : std::vector<std::string>(absl::StrSplit(text, ','))) {
      const std::vector<std::string> parts = absl::StrSplit(word, ':');
      Fault fault;
      int64_t delay_ms = 0;
      if (parts.size() < 2 || parts.size() > 3 || parts[0].empty() ||
          !absl::SimpleAtoi(parts[1], &fault.passages_left) || fault.passages_left < 1) {
        RefuseFault(word);
      }
      fault.point = parts[0];
      if (parts.size() == 3 && parts[2] == "exit") {
        fault.action = Action::kExit;
      } else if (parts.size() == 3 && parts[2] != "kill") {
        if (!absl::SimpleAtoi(parts[2], &delay_ms) || delay_ms < 0) RefuseFault(word);
        fault.action = Action::kDelay;
        fault.delay = absl::Milliseconds(delay_ms);
      }
      faults_.push_back(fault);
    }
  }

  bool armed() {
    absl::MutexLock lock(&mu_);
    return !faults_.empty();
  }

  void Pass(absl::string_view point) {
    absl::Duration delay;
    {
      absl::MutexLock lock(&mu_);
      for (Fault& fault : faults_) {
        if (absl::string_view(fault.point) != point || --fault.passages_left != 0) continue;
        std::fprintf(stderr, "fault_fired point=%s\n", fault.point.c_str());
        if (fault.action == Action::kKill) raise(SIGKILL);
        if (fault.action == Action::kExit) _exit(kFaultExitCode);
        delay += fault.delay;
      }
    }
    absl::SleepFor(delay);
  }

 private:
  absl::Mutex mu_;
  std::vector<Fault> faults_ ABSL_GUARDED_BY(mu_);
};

Faults& TheFaults() {
  static Faults* faults = new Faults;
  return *faults;
}

}  // namespace

std::atomic<bool> g_faults_armed{TheFaults().armed()};

void PassFaultPoint(absl::string_view point) { TheFaults().Pass(point); }

}  // namespace retort::internal

#include "cli/watch.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <functional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "cli/render/job_text.h"
#include "cli/render/names.h"
#include "cli/render/terminal.h"

namespace retort::cli {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr absl::Duration kReconnectEvery = absl::Milliseconds(500);
constexpr absl::Duration kRedrawEvery = absl::Milliseconds(120);
constexpr absl::Duration kPlainEvery = absl::Seconds(5);

std::atomic<int> interrupts{0};
static_assert(std::atomic<int>::is_always_lock_free);

void OnSignal(int) { interrupts.fetch_add(1); }

// Reads the stream in a thread of its own, so that the terminal is redrawn and Ctrl-C heard while nothing comes.
class Reader {
 public:
  Reader(const Client& client, std::string job_id)
      : client_(client), job_id_(std::move(job_id)), thread_([this] { Run(); }) {}
  ~Reader() {
    {
      absl::MutexLock lock(&mu_);
      stop_ = true;
      if (context_ != nullptr) context_->TryCancel();
    }
    thread_.join();
  }

  struct View {
    bool has_job = false;
    v1::Job job;
    bool away = false;      // no stream at the moment
    bool finished = false;  // `result` is final
    absl::Status result;
  };
  // Waits for news, at most `timeout`.
  View Next(absl::Duration timeout) {
    absl::MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(
        absl::Condition(
            +[](Reader* self) ABSL_NO_THREAD_SAFETY_ANALYSIS { return self->version_ != self->shown_; }, this),
        timeout);
    shown_ = version_;
    return view_;
  }

 private:
  void Update(const std::function<void(View*)>& change) {
    absl::MutexLock lock(&mu_);
    change(&view_);
    ++version_;
  }

  void Run() {
    absl::Time last_answer = absl::Now();
    while (true) {
      grpc::ClientContext context;
      {
        absl::MutexLock lock(&mu_);
        if (stop_) return;
        context_ = &context;
      }
      v1::WatchJobRequest request;
      request.set_job_id(job_id_);
      auto stream = client_.jobs->WatchJob(&context, request);
      v1::WatchJobResponse response;
      bool ended = false;
      while (stream->Read(&response)) {
        last_answer = absl::Now();
        ended = HasEnded(response.job().state());
        Update([&](View* view) {
          view->job.Swap(response.mutable_job());
          view->has_job = true;
          view->away = false;
        });
      }
      const absl::Status status = FromGrpc(stream->Finish());
      {
        absl::MutexLock lock(&mu_);
        context_ = nullptr;
        if (stop_) return;
      }
      if (ended) return Update([](View* view) { view->finished = true; });
      if (!status.ok() && !IsRetryable(status)) {
        return Update([&](View* view) {
          view->finished = true;
          view->result = status;
        });
      }
      if (absl::Now() - last_answer > kPatience) {
        return Update([&](View* view) {
          view->finished = true;
          view->result = absl::UnavailableError(absl::StrCat(
              "the coordinator at ", client_.address, " has not answered for ", absl::FormatDuration(kPatience),
              "; the job is kept, watch it again with `distctl status -w ", job_id_, "`"));
        });
      }
      Update([](View* view) { view->away = true; });
      absl::MutexLock lock(&mu_);
      mu_.AwaitWithTimeout(absl::Condition(&stop_), kReconnectEvery);
    }
  }

  const Client& client_;
  const std::string job_id_;
  absl::Mutex mu_;
  View view_ ABSL_GUARDED_BY(mu_);
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t shown_ ABSL_GUARDED_BY(mu_) = 0;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::thread thread_;  // last: uses what stands above
};

// A block of lines that is drawn over its last state.
class Block {
 public:
  void Draw(const std::vector<std::string>& lines) {
    std::string text;
    if (drawn_ > 0) absl::StrAppend(&text, "\x1b[", drawn_, "A");
    for (const std::string& line : lines) absl::StrAppend(&text, "\r", line, "\x1b[K\n");
    absl::StrAppend(&text, "\x1b[J");
    drawn_ = static_cast<int>(lines.size());
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  }

 private:
  int drawn_ = 0;
};

}  // namespace

void CatchInterrupts() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool Interrupted() { return interrupts.load() > 0; }

absl::StatusOr<v1::Job> WatchUntilEnd(const Client& client, const std::string& job_id) {
  CatchInterrupts();
  Reader reader(client, job_id);
  Block block;
  PlainProgressFilter filter(kPlainEvery);
  TextOptions options{.terminal = DescribeTerminal(STDERR_FILENO)};
  bool away_told = false;
  while (true) {
    const Reader::View view = reader.Next(kRedrawEvery);
    if (view.has_job && options.terminal.tty) {
      options.terminal = DescribeTerminal(STDERR_FILENO);
      std::vector<std::string> lines = ProgressLines(view.job, options);
      if (view.away)
        lines.push_back(Styled("  the coordinator is away; waiting for it", Style::kYellow, options.terminal.color));
      block.Draw(lines);
    } else if (view.has_job) {
      const absl::Time now = absl::Now();
      if (const auto line = filter.Update(view.job, now)) {
        std::fprintf(stderr, "%s %s\n", absl::FormatTime("%H:%M:%S", now, absl::LocalTimeZone()).c_str(),
                     line->c_str());
      }
      if (view.away && !away_told) std::fprintf(stderr, "the coordinator is away; waiting for it\n");
      away_told = view.away;
    }
    if (view.finished) {
      if (!view.result.ok()) return view.result;
      return view.job;
    }
    if (Interrupted()) {
      return absl::CancelledError(absl::StrCat("detached; the job goes on: `distctl status -w ", job_id,
                                               "` watches it, `distctl cancel ", job_id, "` stops it"));
    }
    ++options.frame;
    // News may come faster than anybody reads.
    if (!view.finished) absl::SleepFor(absl::Milliseconds(80));
  }
}

}  // namespace retort::cli

#include "common/rpc/retry.h"

#include <algorithm>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace retort {
namespace {

double RandomUnit() {
  thread_local std::mt19937_64 generator{std::random_device{}()};
  return std::uniform_real_distribution<double>(0.0, 1.0)(generator);
}

}  // namespace

bool IsRetryable(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return true;
    case absl::StatusCode::kUnknown:
      return absl::StrContains(status.message(), "Stream removed");
    default:
      return false;
  }
}

absl::Status CallWithRetry(absl::string_view what, const RetryOptions& options,
                           absl::FunctionRef<absl::Status(absl::Time deadline)> call) {
  const absl::Time start = options.clock->Now();
  const absl::Time end = start + options.total;
  absl::Duration backoff = std::min(options.initial_backoff, options.max_backoff);
  for (int attempt = 1;; ++attempt) {
    const absl::Time now = options.clock->Now();
    const absl::Status status =
        call(std::max(std::min(now + options.attempt, end), now + std::min(options.attempt, absl::Seconds(1))));
    if (status.ok()) return status;
    if (!IsRetryable(status)) return WithContext(status, what);
    const absl::Duration wait = backoff * (0.5 + 0.5 * (options.random ? options.random() : RandomUnit()));
    const absl::Duration spent = options.clock->Now() - start;
    if (spent + wait >= options.total) {
      return WithContext(status, absl::StrCat(std::string(what), " (gave up after ", attempt, " attempts in ",
                                              absl::FormatDuration(absl::Trunc(spent, absl::Milliseconds(1))), ")"));
    }
    const auto cancelled = [&] { return options.cancelled && options.cancelled(); };
    if (!cancelled()) {
      if (options.sleep) {
        options.sleep(wait);
      } else {
        absl::SleepFor(wait);
      }
    }
    if (cancelled())
      return absl::CancelledError(
          absl::StrCat(std::string(what), ": cancelled; last failure: ", std::string(status.message())));
    backoff = std::min(backoff * 2, options.max_backoff);
  }
}

}  // namespace retort

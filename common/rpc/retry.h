// Calls that outlive a restart of the other side.
//
// A coordinator may go away and come back at any time. Whoever talks to it repeats what failed with UNAVAILABLE or
// DEADLINE_EXCEEDED until a total deadline, so only calls whose replay is harmless may be made this way (in retort.v1
// that is every call).
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <functional>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/status.h"

namespace retort {

struct RetryOptions {
  // No attempt starts after this long; the last failure is returned then.
  absl::Duration total = absl::Seconds(60);
  // Deadline of one attempt, cut to what is left of `total` (but never under a second).
  absl::Duration attempt = absl::Seconds(20);
  // The n-th wait is drawn evenly from [b/2, b), b = min(max_backoff, initial_backoff * 2^n).
  absl::Duration initial_backoff = absl::Milliseconds(50);
  absl::Duration max_backoff = absl::Seconds(2);
  // Asked before each wait and attempt after the first; true ends the call with kCancelled. Empty: never.
  std::function<bool()> cancelled;

  // For tests. Empty functions mean the real thing.
  const Clock* clock = &SystemClock();
  std::function<void(absl::Duration)> sleep;
  std::function<double()> random;  // [0, 1)
};

// Whether a failure says nothing about the request itself: UNAVAILABLE, DEADLINE_EXCEEDED, and the UNKNOWN "Stream
// removed" that gRPC gives when the connection breaks.
bool IsRetryable(const absl::Status& status);

// Runs `call` with its deadline until it gives something that is not retryable or the time is up. The error keeps its
// code and gains `what`, the number of attempts and the time spent.
absl::Status CallWithRetry(absl::string_view what, const RetryOptions& options,
                           absl::FunctionRef<absl::Status(absl::Time deadline)> call);

// One unary RPC with retries:
//   ASSIGN_OR_RETURN(auto response, UnaryWithRetry<v1::GetTaskResponse>("GetTask", options,
//       [&](grpc::ClientContext* context, v1::GetTaskResponse* response) { return stub->GetTask(context, request,
//       response); }));
template <typename Response, typename Call>
absl::StatusOr<Response> UnaryWithRetry(absl::string_view what, const RetryOptions& options, Call&& call) {
  Response response;
  const absl::Status status = CallWithRetry(what, options, [&](absl::Time deadline) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline));
    response.Clear();
    return FromGrpc(call(&context, &response));
  });
  if (!status.ok()) return status;
  return response;
}

}  // namespace retort

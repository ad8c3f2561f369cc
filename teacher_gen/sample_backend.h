// What turns leased samples into traces: the native engine, or a client of an endpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/sample_service.pb.h"

namespace retort {

// A sample that is done, to be committed.
struct FinishedSample {
  v1::Trace trace;
  uint64_t lease_epoch = 0;
  int64_t new_tokens = 0;  // written by this process: without those that an earlier holder left
};

// One thread calls it at a time.
class SampleBackend {
 public:
  virtual ~SampleBackend() = default;

  // Rendered prompts and their hashes are the backend's business: fills prompt_hash and token_ids from messages_json.
  // Errors: kInvalidArgument (the chat template raises).
  virtual absl::Status Render(v1::Prompt& prompt) const = 0;
  virtual std::string model_revision() const = 0;  // 32 bytes

  // Samples that it can work on at once.
  virtual int64_t capacity() const = 0;
  // Started and not yet returned by Poll.
  virtual int64_t in_flight() const = 0;
  // Never fails for a sample's own fault: such a sample ends with finish_reason "error".
  virtual void Start(v1::LeasedSample sample, const v1::Sampling& sampling) = 0;
  // Works for a while (one step of the engine; at most `wait` for replies) and returns what ended. Errors: what no
  // other sample would fare better with.
  virtual absl::StatusOr<std::vector<FinishedSample>> Poll(absl::Duration wait) = 0;
  // Tokens that unfinished samples have got so far, with their leases, for partial checkpoints.
  virtual std::vector<v1::SavePartialsRequest::Item> Partials() const = 0;
  // Tokens written so far by this process, of unfinished samples too.
  virtual int64_t tokens_written() const = 0;
};

}  // namespace retort

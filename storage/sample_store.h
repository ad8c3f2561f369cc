// The durable store of prompts, traces, leases, partial traces and manifests, over one RocksDB.
//
// A trace's key is (prompt hash, sample index, model revision, sampling hash). It is stored once and never changes. To
// write it takes a lease on the key: (holder, lease epoch), durable, without an end of its own. A lease lives as long
// as its holder's placement: when the coordinator says that the placement is fenced (ReleaseHolder, or TaskFence::Check
// asked when keys run short), the key becomes leasable again with a higher epoch and the old holder is refused at
// commit, key by key. Two sample sets may name the same keys; they then share leases and traces.
//
// All changes pass through one committer thread, which checks fence and leases, gathers what waits into one batch and
// fsyncs once (group_committer.h). What was acknowledged survives any crash; what was not acknowledged may survive.
// State in memory (queues of keys to lease) is rebuilt from the database, at Open for leases, at first use for each
// set.
//
// Recovery: RocksDB's kTolerateCorruptedTailRecords. Its default, kPointInTimeRecovery, stops silently at the first
// damaged record and so may drop acknowledged ones behind it. kAbsoluteConsistency refuses to open after any crash in
// the middle of a write. The mode taken here accepts only a last record cut short by the end of the file, which cannot
// have been acknowledged (each acknowledgement waits for the fsync of the whole record), and refuses to open on any
// other damage.
//
// Thread-safe. kFailedPrecondition is used for fenced callers alone.
#pragma once

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "retort/v1/sample_service.pb.h"
#include "storage/task_fence.h"

namespace rocksdb {
class Env;
}

namespace retort::storage {

// Bounds on what comes from outside, so that any record fits in one message.
inline constexpr size_t kMaxPromptBytes = 4 << 20;
inline constexpr size_t kMaxTraceBytes = 8 << 20;
inline constexpr int kMaxSamplesPerPrompt = 1 << 16;
inline constexpr int kMaxAcquire = 4096;

struct SampleStoreOptions {
  std::string path;  // folder of the database; made when absent
  const Clock* clock = &SystemClock();
  rocksdb::Env* env = nullptr;  // null: the machine's; tests put a failing disk here. Must outlive the store
};

class SampleStore {
 public:
  // Errors: kUnavailable (another process has it open), kDataLoss (the database is damaged; says where),
  // kResourceExhausted (disk full), kPermissionDenied, kInternal.
  static absl::StatusOr<std::unique_ptr<SampleStore>> Open(const SampleStoreOptions& options);
  // Waits for what was submitted.
  ~SampleStore();

  // Common errors of the mutations below: kFailedPrecondition (`ref` is fenced), kInvalidArgument (malformed; says
  // which field), kNotFound (no such set), kResourceExhausted (disk full), kUnavailable (more waits than the queue
  // holds), kInternal.

  // Adds a slice of prompts. Slices come in order; one that is there already is compared and changes nothing, whatever
  // its borders. Errors: kAlreadyExists (the set has other contents there, or is sealed with another length),
  // kOutOfRange (a slice before this one is missing).
  absl::Status PrepareSampleSet(const v1::PrepareSampleSetRequest& request, TaskFence& fence);

  absl::StatusOr<v1::SampleSetInfo> GetSampleSet(absl::string_view sample_set_id);

  // Leases up to `limit` (at most kMaxAcquire, and about 8 MiB of answer) keys without trace and holder, those given up
  // by others first, then in the order of the set. Errors: kAborted (the set is not sealed yet).
  absl::StatusOr<v1::AcquireSamplesResponse> AcquireSamples(const v1::AcquireSamplesRequest& request, TaskFence& fence);

  // One outcome per item. A fenced `ref` is not an error here: what it sends is REPLAYED or FENCED, key by key.
  absl::StatusOr<v1::CommitTracesResponse> CommitTraces(const v1::CommitTracesRequest& request, TaskFence& fence);

  // As CommitTraces. Under one lease a partial only grows; a shorter one is REPLAYED.
  absl::StatusOr<v1::SavePartialsResponse> SavePartials(const v1::SavePartialsRequest& request, TaskFence& fence);

  // Makes every key that this placement holds leasable again. Harmless to repeat. Returns how many there were.
  absl::StatusOr<int64_t> ReleaseHolder(absl::string_view task_id, uint64_t epoch);

  // Calls `emit` with traces in the order (prompt index, sample index), about 1 MiB at a time, as of the moment of the
  // call. Keys without a trace are left out. Stops at the first error of `emit` and returns it.
  absl::Status ListTraces(const v1::ListTracesRequest& request,
                          absl::FunctionRef<absl::Status(const v1::ListTracesResponse& batch)> emit);

  // Stores a manifest under its hash (common/rpc/manifest_hash.h), which is returned. Errors: kNotFound (a key has no
  // trace), kDataLoss (manifest_sha256 is given and another).
  absl::StatusOr<std::string> CreateManifest(const v1::CreateManifestRequest& request, TaskFence& fence);
  absl::StatusOr<v1::Manifest> GetManifest(absl::string_view manifest_sha256);

  absl::StatusOr<v1::GetStoreStatsResponse> GetStats();
  absl::StatusOr<v1::ListSampleSetsResponse> ListSampleSets();

  // Adds rows from outside as prompt and finished trace; each row's last message must be the assistant's. Errors: as
  // PrepareSampleSet.
  absl::StatusOr<v1::ImportTracesResponse> ImportTraces(const v1::ImportTracesRequest& request);

  // Reads every record as of now, checks checksums, and that traces, outcomes, leases, partials, sets and manifests
  // agree. At most 1,000 problems are listed. Work goes on meanwhile.
  absl::StatusOr<v1::VerifyStoreResponse> Verify();

 private:
  class Impl;
  explicit SampleStore(std::unique_ptr<Impl> impl);
  const std::unique_ptr<Impl> impl_;
};

}  // namespace retort::storage

// The inside of SampleStore, split by concern over prepare.cc, acquire.cc, commit.cc, list_traces.cc, manifest.cc,
// import.cc, stats.cc and verify.cc.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "storage/database.h"
#include "storage/group_committer.h"
#include "storage/lease_table.h"
#include "storage/sample_set.h"
#include "storage/sample_store.h"

namespace retort::storage {

// Errors: kInvalidArgument (empty, over 256 bytes, or holding anything but printable ASCII).
absl::Status CheckSampleSetId(absl::string_view sample_set_id);
absl::Status CheckTaskRef(const v1::TaskRef& ref);

// SHA-256 over all that makes a trace but its key and created_at: two traces with the same are the same trace.
std::string TraceContentHash(const v1::Trace& trace);

class SampleStore::Impl {
 public:
  Impl(std::unique_ptr<Database> database, const Clock* clock);

  // On any thread.
  absl::Status Prepare(const v1::PrepareSampleSetRequest& request, TaskFence& fence);
  absl::StatusOr<v1::SampleSetInfo> GetSampleSet(absl::string_view sample_set_id);
  absl::StatusOr<v1::AcquireSamplesResponse> Acquire(const v1::AcquireSamplesRequest& request, TaskFence& fence);
  absl::StatusOr<v1::CommitTracesResponse> Commit(const v1::CommitTracesRequest& request, TaskFence& fence);
  absl::StatusOr<v1::SavePartialsResponse> SavePartials(const v1::SavePartialsRequest& request, TaskFence& fence);
  absl::StatusOr<int64_t> ReleaseHolder(absl::string_view task_id, uint64_t epoch);
  absl::Status ListTraces(const v1::ListTracesRequest& request,
                          absl::FunctionRef<absl::Status(const v1::ListTracesResponse&)> emit);
  absl::StatusOr<std::string> CreateManifest(const v1::CreateManifestRequest& request, TaskFence& fence);
  absl::StatusOr<v1::Manifest> GetManifest(absl::string_view manifest_sha256);
  absl::StatusOr<v1::GetStoreStatsResponse> GetStats();
  absl::StatusOr<v1::ListSampleSetsResponse> ListSampleSets();
  absl::StatusOr<v1::ImportTracesResponse> Import(const v1::ImportTracesRequest& request);
  absl::StatusOr<v1::VerifyStoreResponse> Verify();

  // Reads the leases from the database. Before the first request, and after a batch could not be written.
  absl::Status Reload();

 private:
  // The rest runs on the committer thread.

  // Each mutation begins with it: after a failed Reload nothing works until one succeeds.
  absl::Status EnsureLoaded();
  // The set in memory, read from the database at first use. Null: it is finished (its Info is in finished_) or
  // imported. Errors: kNotFound.
  absl::StatusOr<SampleSet*> FindSet(Transaction& transaction, const std::string& sample_set_id);
  absl::StatusOr<v1::SampleSetRecord> ReadHeader(Transaction& transaction, const std::string& sample_set_id);
  absl::StatusOr<v1::SampleSetInfo> InfoOf(Transaction& transaction, const std::string& sample_set_id);
  absl::StatusOr<std::unique_ptr<SampleSet>> LoadSet(Transaction& transaction, const std::string& sample_set_id,
                                                     const v1::SampleSetRecord& header);
  SampleSet* Adopt(std::unique_ptr<SampleSet> set);
  // Keeps a finished set's Info alone.
  void RetireIfFinished(SampleSet* set);
  // Calls `visit` for each set in memory that holds the key, with its position there.
  void ForEachSetOf(absl::string_view trace_key, absl::FunctionRef<void(SampleSet& set, int64_t position)> visit);

  absl::Status CompareWithStored(Transaction& transaction, const v1::PrepareSampleSetRequest& request, int64_t count);
  absl::Status ApplyPrepare(Transaction& transaction, const v1::PrepareSampleSetRequest& request);
  absl::Status AddPrompts(Transaction& transaction, const v1::PrepareSampleSetRequest& request, int64_t first_new,
                          SampleSet* set);

  absl::StatusOr<v1::AcquireSamplesResponse> ApplyAcquire(Transaction& transaction,
                                                          const v1::AcquireSamplesRequest& request, int limit,
                                                          TaskFence& fence);
  absl::StatusOr<v1::LeasedSample> ReadSample(Transaction& transaction, const SampleSet& set, int64_t position);
  // Leases of holders that the fence refuses are given up. Returns their number.
  int64_t ReleaseFencedHolders(Transaction& transaction, TaskFence& fence);
  int64_t ApplyRelease(Transaction& transaction, absl::string_view task_id, uint64_t epoch);

  struct PreparedTrace;
  v1::CommitOutcome ApplyCommit(Transaction& transaction, const PreparedTrace& trace, const v1::TaskRef& ref,
                                bool fenced, absl::Status* error);
  // Whether the placement is fenced; errors other than that are errors.
  static absl::StatusOr<bool> IsFenced(TaskFence& fence, const v1::TaskRef& ref);

  absl::Status ApplyImport(Transaction& transaction, const v1::ImportTracesRequest& request,
                           const std::vector<std::pair<v1::PromptRecord, v1::Trace>>& rows,
                           v1::ImportTracesResponse* response);

  const std::unique_ptr<Database> database_;
  const Clock* const clock_;

  absl::flat_hash_map<std::string, std::unique_ptr<SampleSet>> sets_;
  absl::flat_hash_map<std::string, std::vector<SampleSet*>> families_;
  absl::flat_hash_map<std::string, v1::SampleSetInfo> finished_;
  LeaseTable leases_;
  uint64_t next_lease_epoch_ = 1;
  absl::Status reload_status_;  // not OK: what is in memory is not to be trusted

  GroupCommitter committer_;  // last: it stops before what it uses goes
};

}  // namespace retort::storage

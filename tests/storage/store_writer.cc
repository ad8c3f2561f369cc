// Writes to a store until it is killed. Prints "<prompt index> <text>" for each trace whose commit was acknowledged,
// unbuffered. Or, with "sweep" or "fetch" first, does
// that to an artifact store.
#include <grpcpp/create_channel.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "common/hash.h"
#include "common/log.h"
#include "common/rpc/artifact_client.h"
#include "storage/artifact_store.h"
#include "storage/sample_store.h"

namespace retort::storage {
namespace {

class OpenFence final : public TaskFence {
 public:
  absl::Status Check(const v1::TaskRef&) override { return absl::OkStatus(); }
};

void Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  _exit(1);
}

void Write(SampleStore& store, TaskFence& fence, const std::string& round, int thread) {
  v1::AcquireSamplesRequest acquire;
  acquire.mutable_ref()->set_task_id(round + "." + std::to_string(thread));
  acquire.set_sample_set_id("s");
  acquire.set_limit(7);
  for (;;) {
    const auto leased = store.AcquireSamples(acquire, fence);
    if (!leased.ok()) Fail(leased.status());
    if (leased->samples_size() == 0) return;
    v1::CommitTracesRequest commit;
    *commit.mutable_ref() = acquire.ref();
    for (const auto& sample : leased->samples()) {
      auto& item = *commit.add_items();
      *item.mutable_trace()->mutable_key() = sample.key();
      item.mutable_trace()->set_text(acquire.ref().task_id() + "/" + std::to_string(sample.lease_epoch()) +
                                     std::string(static_cast<size_t>(sample.lease_epoch() % 977), 'x'));
      item.set_lease_epoch(sample.lease_epoch());
    }
    const auto response = store.CommitTraces(commit, fence);
    if (!response.ok()) Fail(response.status());
    std::string acknowledged;
    for (int i = 0; i < commit.items_size(); ++i) {
      if (response->outcomes(i) != v1::COMMIT_OUTCOME_STORED) Fail(absl::InternalError("a held key was refused"));
      acknowledged += std::to_string(leased->samples(i).prompt_index()) + " " + commit.items(i).trace().text() + "\n";
    }
    if (write(STDOUT_FILENO, acknowledged.data(), acknowledged.size()) < 0) _exit(1);
  }
}

// Sweeps an artifact store in which nothing is named but `live_artifact`, as if two hours had passed.
int Sweep(const std::string& root, const std::string& live_artifact) {
  auto store = ArtifactStore::Open({.root = root});
  if (!store.ok()) Fail(store.status());
  SweepOptions options;
  options.live_artifacts = {live_artifact};
  absl::flat_hash_set<std::string> retired;
  const auto swept = (*store)->Sweep(options, &retired, absl::Now() + absl::Hours(2));
  if (!swept.ok()) Fail(swept.status());
  return 0;
}

// Downloads a blob, as a task process does.
int Fetch(const std::string& address, const std::string& sha256, const std::string& size_bytes,
          const std::string& path) {
  v1::BlobRef blob;
  blob.set_sha256(sha256);
  blob.set_size_bytes(std::stoll(size_bytes));
  ArtifactClient client(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  if (const absl::Status status = client.GetFile(blob, path); !status.ok()) Fail(status);
  return 0;
}

int Main(const std::string& path, const std::string& round) {
  auto store = SampleStore::Open({.path = path});
  if (!store.ok()) Fail(store.status());
  OpenFence fence;
  v1::PrepareSampleSetRequest prepare;
  prepare.mutable_ref()->set_task_id("writer");
  prepare.set_sample_set_id("s");
  prepare.set_model_revision(std::string(32, 'm'));
  prepare.set_sampling_hash(std::string(32, 's'));
  prepare.set_n(1);
  for (int i = 0; i < 100'000; ++i) {
    v1::Prompt& prompt = *prepare.add_prompts();
    prompt.set_prompt_index(i);
    prompt.set_prompt_hash(ToBytes(Sha256Of(std::to_string(i))));
  }
  prepare.set_seal(true);
  if (const absl::Status status = (*store)->PrepareSampleSet(prepare, fence); !status.ok()) Fail(status);
  if (write(STDOUT_FILENO, "ready\n", 6) < 0) _exit(1);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread)
    threads.emplace_back([&, thread] { Write(**store, fence, round, thread); });
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // namespace
}  // namespace retort::storage

int main(int argc, char** argv) {
  const std::string verb = argc > 1 ? argv[1] : "";
  retort::InitLogging("writer");
  if (verb == "sweep" && argc == 4) return retort::storage::Sweep(argv[2], argv[3]);
  if (verb == "fetch" && argc == 6) return retort::storage::Fetch(argv[2], argv[3], argv[4], argv[5]);
  if (argc != 3) return 2;
  return retort::storage::Main(argv[1], argv[2]);
}

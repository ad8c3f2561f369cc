// The services and their clients over a real connection, with a coordinator that breaks off in the middle.
#include "storage/rpc/services.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <functional>

#include "absl/time/clock.h"
#include "common/file.h"
#include "common/rpc/artifact_client.h"
#include "common/rpc/sample_client.h"
#include "tests/storage/store_fixture.h"

namespace retort::storage {
namespace {

namespace fs = std::filesystem;

// Breaks off some streams half-way, as a coordinator that is restarted does.
class FlakyArtifacts final : public v1::ArtifactService::Service {
 public:
  explicit FlakyArtifacts(ArtifactStore* store) : store_(store), inner_(store) {}
  grpc::Status PutBlob(grpc::ServerContext* context, grpc::ServerReader<v1::PutBlobRequest>* reader,
                       v1::PutBlobResponse* response) override {
    if (breaks-- > 0) {
      v1::PutBlobRequest request;
      reader->Read(&request);
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting");
    }
    const grpc::Status status = inner_.PutBlob(context, reader, response);
    if (after_put) after_put(response->blob().sha256());
    return status;
  }
  grpc::Status GetBlob(grpc::ServerContext* context, const v1::GetBlobRequest* request,
                       grpc::ServerWriter<v1::GetBlobResponse>* writer) override {
    offsets.push_back(request->offset_bytes());
    if (breaks-- > 0) {
      v1::GetBlobResponse response;
      (void)store_->ReadBlob(request->sha256(), request->offset_bytes(), 700, [&](absl::string_view data) {
        response.set_data(std::string(data));
        return absl::OkStatus();
      });
      if (corrupt) response.mutable_data()->at(0) ^= 1;
      writer->Write(response);
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting");
    }
    return inner_.GetBlob(context, request, writer);
  }
  grpc::Status StatBlobs(grpc::ServerContext* context, const v1::StatBlobsRequest* request,
                         v1::StatBlobsResponse* response) override {
    return inner_.StatBlobs(context, request, response);
  }
  grpc::Status PutArtifact(grpc::ServerContext* context, const v1::PutArtifactRequest* request,
                           v1::PutArtifactResponse* response) override {
    return inner_.PutArtifact(context, request, response);
  }
  grpc::Status GetArtifact(grpc::ServerContext* context, const v1::GetArtifactRequest* request,
                           v1::GetArtifactResponse* response) override {
    return inner_.GetArtifact(context, request, response);
  }
  std::function<void(const std::string& sha256)> after_put;
  std::atomic<int> breaks = 0;
  std::atomic<bool> corrupt = false;
  std::vector<int64_t> offsets;

 private:
  ArtifactStore* const store_;
  ArtifactServiceImpl inner_;
};

class ServicesTest : public StoreFixture {
 protected:
  ServicesTest() : artifacts_(ArtifactStore::Open({.root = folder_ + "_artifacts"}).value()), flaky_(artifacts_.get()) {
    samples_ = std::make_unique<SampleServiceImpl>(store_.get(), &fence_);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(samples_.get());
    builder.RegisterService(&flaky_);
    builder.SetMaxReceiveMessageSize(16 << 20);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
    channel_ = grpc::CreateChannel(address_, grpc::InsecureChannelCredentials());
    retry_.initial_backoff = absl::Milliseconds(1);
    scratch_ = folder_ + "_scratch";
    fs::remove_all(scratch_);
    fs::create_directories(scratch_);
  }
  ~ServicesTest() override {
    server_->Shutdown(std::chrono::system_clock::now());
    fs::remove_all(folder_ + "_artifacts");
    fs::remove_all(scratch_);
  }
  void Write(const std::string& name, const std::string& contents) {
    fs::create_directories(fs::path(scratch_ + "/" + name).parent_path());
    ASSERT_TRUE(WriteFileAtomically(scratch_ + "/" + name, contents).ok());
  }

  std::unique_ptr<ArtifactStore> artifacts_;
  FlakyArtifacts flaky_;
  std::unique_ptr<SampleServiceImpl> samples_;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  RetryOptions retry_;
  std::string scratch_;
};

TEST_F(ServicesTest, AManifestIsNotBoundByTheSizeOfAMessage) {
  constexpr int kKeys = 25'000;  // 2.7 MB, over the limits below
  PrepareSet("s", kKeys, {"p0"});
  v1::Manifest manifest;
  while (manifest.keys_size() < kKeys) {
    const auto leased = Acquire(Ref("a", 1), "s", kMaxAcquire);
    ASSERT_TRUE(leased.ok()) << leased.status();
    std::vector<v1::CommitTracesRequest::Item> items;
    for (const v1::LeasedSample& sample : leased->samples()) {
      *manifest.add_keys() = sample.key();
      items.push_back(Item(sample, "x"));
    }
    Commit(Ref("a", 1), std::move(items));
  }
  manifest.set_train_count(kKeys - 1);
  manifest.set_validation_count(1);
  manifest.mutable_train()->set_sha256(Sha256Hex("file"));

  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  SampleServiceImpl service(store_.get(), &fence_);
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(2 << 20);
  const auto server = builder.BuildAndStart();
  grpc::ChannelArguments small;
  small.SetMaxReceiveMessageSize(2 << 20);
  SampleClient client(
      grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port), grpc::InsecureChannelCredentials(), small),
      Ref("a", 1), retry_);
  const auto id = client.CreateManifest(manifest);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(client.CreateManifest(manifest).value(), *id);
  const auto read = client.GetManifest(*id);
  ASSERT_TRUE(read.ok()) << read.status();
  manifest.set_manifest_sha256(*id);
  EXPECT_EQ(read->SerializeAsString(), manifest.SerializeAsString());
  EXPECT_EQ(client.GetManifest(Sha256Hex("none")).status().code(), absl::StatusCode::kNotFound);

  manifest.mutable_keys()->RemoveLast();
  EXPECT_EQ(client.CreateManifest(manifest).status().code(), absl::StatusCode::kInvalidArgument);
  SampleClient fenced(channel_, Ref("a", 2), retry_);
  manifest.set_validation_count(0);
  EXPECT_EQ(fenced.CreateManifest(manifest).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ServicesTest, FoldersTravelThereAndBack) {
  ArtifactClient client(channel_, retry_);
  const std::string large(5'000'000, 'l');
  Write("in/a/large.bin", large);
  Write("in/b.txt", "b");
  Write("in/empty", "");
  flaky_.breaks = 2;
  const auto id = client.PutFolder(scratch_ + "/in");
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(client.PutFolder(scratch_ + "/in").value(), *id);
  flaky_.breaks = 3;
  const absl::Status got = client.GetFolder(*id, scratch_ + "/out");
  ASSERT_TRUE(got.ok()) << got;
  EXPECT_EQ(ReadFile(scratch_ + "/out/a/large.bin").value(), large);
  EXPECT_EQ(ReadFile(scratch_ + "/out/empty").value(), "");
  EXPECT_TRUE(client.GetFolder(*id, scratch_ + "/out").ok());
  Write("out/extra", "x");
  EXPECT_EQ(client.GetFolder(*id, scratch_ + "/out").code(), absl::StatusCode::kAlreadyExists);
  for (const auto& entry : fs::directory_iterator(scratch_))
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos);
}

TEST_F(ServicesTest, ADownloadGoesOnWhereItStopped) {
  ArtifactClient client(channel_, retry_);
  std::string contents;
  for (int i = 0; i < 3000; ++i) contents.push_back(static_cast<char>(i * 7));
  const v1::BlobRef blob = client.PutBytes(contents).value();
  flaky_.breaks = 2;
  ASSERT_TRUE(client.GetFile(blob, scratch_ + "/file").ok());
  EXPECT_THAT(flaky_.offsets, ::testing::ElementsAre(0, 700, 1400));
  EXPECT_EQ(ReadFile(scratch_ + "/file").value(), contents);
  EXPECT_EQ(client.GetBytes(blob, 3000).value(), contents);
  EXPECT_EQ(client.GetBytes(blob, 2999).status().code(), absl::StatusCode::kResourceExhausted);

  // What an earlier process left is used, if it is right, and thrown away if it is not.
  for (const bool right : {true, false}) {
    flaky_.offsets.clear();
    const std::string path = scratch_ + (right ? "/second" : "/third");
    Write(fs::path(path).filename().string() + ".part-" + blob.sha256().substr(0, 16),
          right ? contents.substr(0, 100) : std::string(100, '!'));
    ASSERT_TRUE(client.GetFile(blob, path).ok());
    EXPECT_EQ(flaky_.offsets.front(), 100);
    EXPECT_EQ(flaky_.offsets.size(), right ? 1u : 2u);
    EXPECT_EQ(ReadFile(path).value(), contents);
  }
}

TEST_F(ServicesTest, TwoProcessesFetchTheSameFile) {
  ArtifactClient client(channel_, retry_);
  const v1::BlobRef blob = client.PutBytes("contents").value();
  const std::string path = scratch_ + "/file", partial = path + ".part-" + blob.sha256().substr(0, 16);
  const std::string writer = fs::read_symlink("/proc/self/exe").parent_path() / "store_writer";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    setenv("RETORT_FAULT", "artifact_client.before_lock:1:400", 1);
    execl(writer.c_str(), writer.c_str(), "fetch", address_.c_str(), blob.sha256().c_str(), "8", path.c_str(), nullptr);
    _exit(127);
  }
  // The other has opened the partial file and has no lock yet when this one publishes it.
  for (const absl::Time give_up = absl::Now() + absl::Seconds(20); !fs::exists(partial) && absl::Now() < give_up;)
    absl::SleepFor(absl::Milliseconds(1));
  ASSERT_TRUE(fs::exists(partial));
  const absl::Status got = client.GetFile(blob, path);
  EXPECT_TRUE(got.ok()) << got;
  int exit_status = 0;
  ASSERT_EQ(waitpid(child, &exit_status, 0), child);
  EXPECT_EQ(exit_status, 0);
  EXPECT_EQ(ReadFile(path).value(), "contents");
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch_), fs::directory_iterator()), 1);
}

TEST_F(ServicesTest, AFolderIsWholeAlthoughItsFirstFileWentWhileTheRestWasSent) {
  ArtifactClient client(channel_, retry_);
  Write("in/a", "first");
  Write("in/b", "second");
  const std::string first = Sha256Hex("first");
  flaky_.after_put = [&](const std::string& sha256) {
    if (sha256 != first) fs::remove(folder_ + "_artifacts/blobs/" + first.substr(0, 2) + "/" + first);
  };
  const auto id = client.PutFolder(scratch_ + "/in");
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_TRUE(artifacts_->HasBlob(first));
}

TEST_F(ServicesTest, WrongBytesAreNeverPublished) {
  ArtifactClient client(channel_, retry_);
  const v1::BlobRef blob = client.PutBytes(std::string(3000, 'x')).value();
  flaky_.breaks = 1;
  flaky_.corrupt = true;
  EXPECT_EQ(client.GetFile(blob, scratch_ + "/file").code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(fs::exists(scratch_ + "/file"));
  EXPECT_TRUE(fs::is_empty(scratch_));
  v1::BlobRef unknown = blob;
  unknown.set_sha256(Sha256Hex("other"));
  EXPECT_EQ(client.GetFile(unknown, scratch_ + "/file").code(), absl::StatusCode::kNotFound);
}

TEST_F(ServicesTest, RefusesToUploadLinks) {
  ArtifactClient client(channel_, retry_);
  Write("in/a", "a");
  fs::create_symlink("/etc/passwd", scratch_ + "/in/link");
  EXPECT_EQ(client.PutFolder(scratch_ + "/in").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client.PutFolder(scratch_ + "/none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ServicesTest, ASampleSetFromDeclarationToExport) {
  SampleClient client(channel_, Ref("a", 1), retry_);
  SampleSetDeclaration set{
      .sample_set_id = "job/teacher", .model_revision = Hash32("m"), .sampling_hash = Hash32("s"), .n = 1};
  std::vector<v1::Prompt> prompts;
  for (int i = 0; i < 4500; ++i) {
    v1::Prompt& prompt = prompts.emplace_back();
    prompt.set_prompt_hash(Hash32(std::to_string(i)));
    prompt.set_messages_json("[{\"role\":\"user\",\"content\":\"q" + std::to_string(i) + "\"}]");
  }
  ASSERT_TRUE(client.Prepare(set, prompts).ok());
  ASSERT_TRUE(client.Prepare(set, prompts).ok());
  int64_t committed = 0;
  for (;;) {
    const auto leased = client.Acquire("job/teacher", 1000);
    ASSERT_TRUE(leased.ok()) << leased.status();
    if (leased->remaining() == 0) break;
    std::vector<v1::CommitTracesRequest::Item> items;
    for (const auto& sample : leased->samples())
      items.push_back(Item(sample, "t" + std::to_string(sample.prompt_index())));
    const auto outcomes = client.Commit(std::move(items));
    ASSERT_TRUE(outcomes.ok()) << outcomes.status();
    for (const v1::CommitOutcome outcome : *outcomes) committed += outcome == v1::COMMIT_OUTCOME_STORED;
  }
  EXPECT_EQ(committed, 4500);
  int64_t expected = 0;
  ASSERT_TRUE(client
                  .ListTraces("job/teacher",
                              [&](const v1::Prompt& prompt, const v1::Trace& trace) {
                                EXPECT_EQ(prompt.prompt_index(), expected);
                                EXPECT_EQ(trace.text(), "t" + std::to_string(expected++));
                                return absl::OkStatus();
                              })
                  .ok());
  EXPECT_EQ(expected, 4500);
  EXPECT_EQ(client.ExportJsonl("job/teacher", scratch_ + "/out.jsonl").value(), 4500);
  EXPECT_EQ(
      ReadFile(scratch_ + "/out.jsonl")->substr(0, 85),
      "{\"messages\":[{\"role\":\"user\",\"content\":\"q0\"},{\"role\":\"assistant\",\"content\":\"t0\"}]}\n{\"m");

  fence_.current["a"] = 2;
  EXPECT_EQ(client.Acquire("job/teacher", 1).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(client.Stats()->traces(), 4500);
  EXPECT_EQ(client.ListSampleSets()->sets_size(), 1);
  EXPECT_EQ(client.Verify()->problems_size(), 0);
}

TEST_F(ServicesTest, ImportedRowsComeBackByteForByte) {
  SampleClient client(channel_, v1::TaskRef(), retry_);
  std::string file;
  for (int i = 0; i < 50; ++i) {
    file += R"({"id": )" + std::to_string(i) + R"(,  "messages": [{"content":"q\u00e9)" + std::to_string(i % 7) +
            R"(", "role":"user"}, {"role":"assistant","content":"<think>x</think>y"}], "score": 1.50})" + "\n";
  }
  Write("rows.jsonl", file);
  EXPECT_EQ(client.ImportJsonl(scratch_ + "/rows.jsonl", "x")->stored(), 50);
  EXPECT_EQ(client.ImportJsonl(scratch_ + "/rows.jsonl", "x")->already_present(), 50);
  EXPECT_EQ(client.ExportJsonl("import/x", scratch_ + "/back.jsonl").value(), 50);
  EXPECT_EQ(ReadFile(scratch_ + "/back.jsonl").value(), file);
  Write("other.jsonl", "{\"messages\": []}\n");
  EXPECT_THAT(std::string(client.ImportJsonl(scratch_ + "/other.jsonl", "y").status().message()),
              ::testing::HasSubstr("other.jsonl:1"));
  EXPECT_EQ(client.ExportJsonl("import/none", scratch_ + "/none.jsonl").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(fs::exists(scratch_ + "/none.jsonl"));
}

}  // namespace
}  // namespace retort::storage

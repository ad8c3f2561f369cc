// A store whose disk fills up and is freed again.
#include <gmock/gmock.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>

#include "tests/storage/store_fixture.h"

namespace retort::storage {
namespace {

class LimitedFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  LimitedFile(std::unique_ptr<rocksdb::FSWritableFile> file, const std::atomic<bool>& full)
      : FSWritableFileOwnerWrapper(std::move(file)), full_(full) {}
  using FSWritableFileOwnerWrapper::Append;
  rocksdb::IOStatus Append(const rocksdb::Slice& data, const rocksdb::IOOptions& options,
                           rocksdb::IODebugContext* debug) override {
    if (!full_) return FSWritableFileOwnerWrapper::Append(data, options, debug);
    // Half of it still fits, as on a real disk.
    (void)FSWritableFileOwnerWrapper::Append(rocksdb::Slice(data.data(), data.size() / 2), options, debug);
    return rocksdb::IOStatus::NoSpace("No space left on device");
  }

 private:
  const std::atomic<bool>& full_;
};

class LimitedDisk final : public rocksdb::FileSystemWrapper {
 public:
  LimitedDisk() : FileSystemWrapper(rocksdb::FileSystem::Default()) {}
  const char* Name() const override { return "LimitedDisk"; }
  rocksdb::IOStatus NewWritableFile(const std::string& name, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* debug) override {
    std::unique_ptr<rocksdb::FSWritableFile> inner;
    const rocksdb::IOStatus status = FileSystemWrapper::NewWritableFile(name, options, &inner, debug);
    if (status.ok()) *file = std::make_unique<LimitedFile>(std::move(inner), full);
    return status;
  }
  std::atomic<bool> full = false;
};

class DiskFullTest : public StoreFixture {
 protected:
  DiskFullTest() : disk_(std::make_shared<LimitedDisk>()), env_(rocksdb::NewCompositeEnv(disk_)) { OpenLimited(); }
  ~DiskFullTest() override { store_.reset(); }
  void OpenLimited() {
    store_.reset();
    auto opened = SampleStore::Open({.path = folder_, .env = env_.get()});
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  const std::shared_ptr<LimitedDisk> disk_;
  const std::unique_ptr<rocksdb::Env> env_;
};

TEST_F(DiskFullTest, RefusesWritesKeepsWhatItHasAndGoesOn) {
  PrepareSet("s", 1, {"p0", "p1", "p2"});
  const auto leased = Acquire(Ref("a", 1), "s", 2);
  ASSERT_EQ(leased->samples_size(), 2);
  Commit(Ref("a", 1), {Item(leased->samples(0), "kept")});

  disk_->full = true;
  v1::CommitTracesRequest request;
  *request.mutable_ref() = Ref("a", 1);
  *request.add_items() = Item(leased->samples(1), "refused");
  for (int attempt = 0; attempt < 2; ++attempt) {
    const auto refused = store_->CommitTraces(request, fence_);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
  }
  EXPECT_EQ(Acquire(Ref("a", 1), "s", 1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(List("s"), ::testing::ElementsAre(::testing::Pair(0, "kept")));
  EXPECT_EQ(store_->GetSampleSet("s")->trace_count(), 1);
  EXPECT_EQ(store_->GetSampleSet("s")->leased_count(), 1);

  disk_->full = false;
  EXPECT_THAT(Commit(Ref("a", 1), {Item(leased->samples(1), "second try")}),
              ::testing::ElementsAre(v1::COMMIT_OUTCOME_STORED));
  const auto last = Acquire(Ref("a", 1), "s", 5);
  ASSERT_EQ(last->samples_size(), 1);
  EXPECT_THAT(Commit(Ref("a", 1), {Item(last->samples(0), "last")}), ::testing::ElementsAre(v1::COMMIT_OUTCOME_STORED));
  OpenLimited();
  EXPECT_THAT(List("s"), ::testing::ElementsAre(::testing::Pair(0, "kept"), ::testing::Pair(1, "second try"),
                                                ::testing::Pair(2, "last")));
  ExpectSound();
}

TEST_F(DiskFullTest, ACrashWhileFullLosesNothing) {
  PrepareSet("s", 1, {"p0", "p1"});
  const auto leased = Acquire(Ref("a", 1), "s", 2);
  Commit(Ref("a", 1), {Item(leased->samples(0), "kept")});
  disk_->full = true;
  v1::CommitTracesRequest request;
  *request.mutable_ref() = Ref("a", 1);
  *request.add_items() = Item(leased->samples(1), "refused");
  EXPECT_FALSE(store_->CommitTraces(request, fence_).ok());
  store_.reset();
  disk_->full = false;
  OpenLimited();
  EXPECT_EQ(List("s").at(0).second, "kept");
  ExpectSound();
}

}  // namespace
}  // namespace retort::storage

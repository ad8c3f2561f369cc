#include "storage/artifact_store.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "common/rpc/artifact_listing.h"

namespace retort::storage {
namespace {

namespace fs = std::filesystem;

class ArtifactStoreTest : public testing::Test {
 protected:
  ArtifactStoreTest() : root_(testing::TempDir() + "/retort_artifacts_" + std::to_string(getpid())) {
    fs::remove_all(root_);
    Reopen();
  }
  ~ArtifactStoreTest() override { fs::remove_all(root_); }
  void Reopen(ArtifactStoreOptions options = {}) {
    store_.reset();
    options.root = root_;
    auto opened = ArtifactStore::Open(options);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  static v1::BlobRef RefOf(const std::string& contents) {
    v1::BlobRef blob;
    blob.set_sha256(Sha256Hex(contents));
    blob.set_size_bytes(static_cast<int64_t>(contents.size()));
    return blob;
  }
  absl::StatusOr<std::string> Read(const std::string& sha256, int64_t offset = 0, int64_t limit = 0) {
    std::string contents;
    const absl::Status status = store_->ReadBlob(sha256, offset, limit, [&](absl::string_view data) {
      contents.append(data.data(), data.size());
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return contents;
  }
  size_t IncomingFiles() {
    return static_cast<size_t>(std::distance(fs::directory_iterator(root_ + "/incoming"), fs::directory_iterator()));
  }
  static void AddFile(v1::Artifact* artifact, const std::string& path, const v1::BlobRef& blob) {
    v1::ArtifactFile& file = *artifact->add_files();
    file.set_path(path);
    *file.mutable_blob() = blob;
  }

  const std::string root_;
  std::unique_ptr<ArtifactStore> store_;
};

TEST_F(ArtifactStoreTest, KeepsBlobsByTheirContents) {
  const std::string contents(3 << 20, 'x');
  const v1::BlobRef blob = store_->PutBytes(contents).value();
  EXPECT_EQ(blob.sha256(), Sha256Hex(contents));
  EXPECT_EQ(store_->StartBlob(blob).value(), nullptr);
  Reopen();
  EXPECT_EQ(Read(blob.sha256()).value(), contents);
  EXPECT_EQ(Read(blob.sha256(), 5, 10).value(), std::string(10, 'x'));
  EXPECT_EQ(Read(blob.sha256(), 3 << 20).value(), "");
  EXPECT_EQ(Read(blob.sha256(), (3 << 20) + 1).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Read(blob.sha256(), -1).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Read(Sha256Hex("other")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Read("../../etc/passwd").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read(store_->PutBytes("")->sha256()).value(), "");
}

TEST_F(ArtifactStoreTest, PublishesNothingThatIsNotAsAnnounced) {
  auto writer = store_->StartBlob(RefOf("right")).value();
  ASSERT_TRUE(writer->Append("wrong").ok());
  EXPECT_EQ(writer->Commit().code(), absl::StatusCode::kDataLoss);
  writer = store_->StartBlob(RefOf("right")).value();
  ASSERT_TRUE(writer->Append("rig").ok());
  EXPECT_EQ(writer->Commit().code(), absl::StatusCode::kDataLoss);
  writer = store_->StartBlob(RefOf("right")).value();
  EXPECT_EQ(writer->Append("righter").code(), absl::StatusCode::kDataLoss);
  writer.reset();
  EXPECT_FALSE(store_->HasBlob(Sha256Hex("right")));
  EXPECT_EQ(IncomingFiles(), 0u);
}

TEST_F(ArtifactStoreTest, RefusesWhatDoesNotFit) {
  Reopen({.max_blob_bytes = 4});
  EXPECT_EQ(store_->PutBytes("12345").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store_->PutBytes("1234").ok());
  Reopen({.min_free_bytes = INT64_MAX / 2});
  EXPECT_EQ(store_->PutBytes("123").status().code(), absl::StatusCode::kResourceExhausted);
  v1::BlobRef negative = RefOf("x");
  negative.set_size_bytes(-1);
  EXPECT_EQ(store_->StartBlob(negative).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ArtifactStoreTest, ADiskThatFillsUpLeavesNothingBehind) {
  // The limit on file sizes stands in for a full disk: a write stops in the middle.
  signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 100'000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto refused = store_->PutBytes(std::string(1 << 20, 'x'));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted) << refused.status();
  EXPECT_EQ(IncomingFiles(), 0u);
  EXPECT_TRUE(store_->PutBytes(std::string(1 << 20, 'x')).ok());
}

TEST_F(ArtifactStoreTest, RemovesWhatACrashedUploadLeft) {
  std::ofstream(root_ + "/incoming/left") << "half";
  Reopen();
  EXPECT_EQ(IncomingFiles(), 0u);
}

TEST_F(ArtifactStoreTest, NoticesDamageOnDisk) {
  const v1::BlobRef blob = store_->PutBytes(std::string(100, 'x')).value();
  std::ofstream(root_ + "/blobs/" + blob.sha256().substr(0, 2) + "/" + blob.sha256()) << std::string(100, 'y');
  EXPECT_EQ(Read(blob.sha256()).status().code(), absl::StatusCode::kDataLoss);
  v1::Artifact artifact;
  AddFile(&artifact, "a", blob);
  const std::string id = store_->PutArtifact(artifact).value();
  std::ofstream(root_ + "/listings/" + id.substr(0, 2) + "/" + id) << "nonsense";
  EXPECT_EQ(store_->GetArtifact(id).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ArtifactStoreTest, WhatIsDamagedMakesRoomForAnotherUpload) {
  const v1::BlobRef good = store_->PutBytes("good").value(), bad = store_->PutBytes("bad").value();
  v1::Artifact artifact;
  AddFile(&artifact, "a", good);
  AddFile(&artifact, "b", bad);
  const std::string id = store_->PutArtifact(artifact).value();
  EXPECT_TRUE(store_->VerifyArtifact(id).ok());
  const std::string path = root_ + "/blobs/" + bad.sha256().substr(0, 2) + "/" + bad.sha256();
  for (const char* contents : {"bed", ""}) {
    std::ofstream(path) << contents;
    EXPECT_EQ(store_->VerifyArtifact(id).code(), absl::StatusCode::kDataLoss);
    EXPECT_FALSE(store_->HasBlob(bad.sha256()));
    EXPECT_TRUE(store_->HasBlob(good.sha256()));
    EXPECT_EQ(store_->VerifyArtifact(id).code(), absl::StatusCode::kNotFound) << "a replay finds it gone";
    ASSERT_TRUE(store_->PutBytes("bad").ok());
    EXPECT_TRUE(store_->VerifyArtifact(id).ok());
  }
  std::ofstream(root_ + "/listings/" + id.substr(0, 2) + "/" + id) << "nonsense";
  EXPECT_EQ(store_->VerifyArtifact(id).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(store_->PutArtifact(artifact).value(), id);
  EXPECT_TRUE(store_->VerifyArtifact(id).ok());
}

TEST_F(ArtifactStoreTest, KeepsFoldersByTheirListing) {
  const v1::BlobRef one = store_->PutBytes("1").value(), two = store_->PutBytes("2").value();
  v1::Artifact artifact;
  AddFile(&artifact, "a/b.txt", one);
  AddFile(&artifact, "c", two);
  const std::string id = store_->PutArtifact(artifact).value();
  EXPECT_EQ(store_->PutArtifact(artifact).value(), id);
  Reopen();
  EXPECT_EQ(store_->GetArtifact(id)->files(0).path(), "a/b.txt");
  artifact.set_artifact_id(Sha256Hex("wrong"));
  EXPECT_EQ(store_->PutArtifact(artifact).status().code(), absl::StatusCode::kInvalidArgument);
  artifact.clear_artifact_id();
  artifact.mutable_files(1)->mutable_blob()->set_size_bytes(5);
  EXPECT_EQ(store_->PutArtifact(artifact).status().code(), absl::StatusCode::kNotFound);
  *artifact.mutable_files(1)->mutable_blob() = RefOf("never uploaded");
  EXPECT_EQ(store_->PutArtifact(artifact).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->GetArtifact(Sha256Hex("none")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->GetArtifact("../x").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ArtifactStoreTest, RefusesHostileListings) {
  const v1::BlobRef blob = store_->PutBytes("1").value();
  for (const std::string path : {"", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", ".."}) {
    v1::Artifact artifact;
    AddFile(&artifact, path, blob);
    EXPECT_EQ(store_->PutArtifact(artifact).status().code(), absl::StatusCode::kInvalidArgument) << path;
  }
  v1::Artifact nul;
  AddFile(&nul, std::string("a\0b", 3), blob);
  EXPECT_FALSE(store_->PutArtifact(nul).ok());
  v1::Artifact twice;
  AddFile(&twice, "a", blob);
  AddFile(&twice, "a", blob);
  EXPECT_FALSE(store_->PutArtifact(twice).ok());
  v1::Artifact unsorted;
  AddFile(&unsorted, "b", blob);
  AddFile(&unsorted, "a", blob);
  EXPECT_FALSE(store_->PutArtifact(unsorted).ok());
  v1::Artifact file_and_folder;
  AddFile(&file_and_folder, "a", blob);
  AddFile(&file_and_folder, "a!", blob);
  AddFile(&file_and_folder, "a/b", blob);
  EXPECT_FALSE(store_->PutArtifact(file_and_folder).ok());
  v1::Artifact bad_hash;
  AddFile(&bad_hash, "a", blob);
  bad_hash.mutable_files(0)->mutable_blob()->set_sha256("../../../../etc/passwd");
  EXPECT_FALSE(store_->PutArtifact(bad_hash).ok());
}

TEST_F(ArtifactStoreTest, ASweepKeepsWhatIsNamed) {
  const v1::BlobRef shared = store_->PutBytes("shared").value(), own = store_->PutBytes("own").value();
  const v1::BlobRef input = store_->PutBytes("input").value(), orphan = store_->PutBytes("orphan").value();
  v1::Artifact live, dead;
  AddFile(&live, "a", shared);
  AddFile(&dead, "a", shared);
  AddFile(&dead, "b", own);
  const std::string live_id = store_->PutArtifact(live).value(), dead_id = store_->PutArtifact(dead).value();
  SweepOptions options;
  options.live_artifacts = {live_id, Sha256Hex("an artifact that was never stored")};
  options.live_blobs = {input.sha256()};
  absl::flat_hash_set<std::string> retired;
  // All of it is young.
  auto swept = store_->Sweep(options, &retired).value();
  EXPECT_EQ(swept.artifacts + swept.blobs, 0);
  swept = store_->Sweep(options, &retired, absl::Now() + absl::Hours(2)).value();
  EXPECT_EQ(swept.artifacts, 1);
  EXPECT_EQ(swept.blobs, 2);
  EXPECT_EQ(IncomingFiles(), 0u);
  Reopen();
  EXPECT_TRUE(store_->GetArtifact(live_id).ok());
  EXPECT_EQ(Read(shared.sha256()).value(), "shared");
  EXPECT_EQ(Read(input.sha256()).value(), "input");
  EXPECT_EQ(store_->GetArtifact(dead_id).status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(store_->HasBlob(own.sha256()));
  EXPECT_FALSE(store_->HasBlob(orphan.sha256()));
  // It can be stored again.
  EXPECT_EQ(store_->PutArtifact(dead).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(store_->PutBytes("own").ok());
  EXPECT_EQ(store_->PutArtifact(dead).value(), dead_id);
}

TEST_F(ArtifactStoreTest, ASweepKeepsWhatSomebodyIsAboutToName) {
  const std::vector<std::string> contents = {"asked for", "stored again", "in a folder", "in a folder asked for",
                                             "old"};
  v1::Artifact folder, asked;
  for (const std::string& text : contents) ASSERT_TRUE(store_->PutBytes(text).ok());
  AddFile(&folder, "f", RefOf("in a folder"));
  AddFile(&asked, "f", RefOf("in a folder asked for"));
  const std::string folder_id = store_->PutArtifact(folder).value(), asked_id = store_->PutArtifact(asked).value();
  const auto long_ago = fs::file_time_type::clock::now() - std::chrono::hours(2);
  for (const auto& entry : fs::recursive_directory_iterator(root_)) {
    if (entry.is_regular_file()) fs::last_write_time(entry.path(), long_ago);
  }
  EXPECT_TRUE(store_->HasBlob(RefOf("asked for").sha256()));
  EXPECT_EQ(store_->StartBlob(RefOf("stored again")).value(), nullptr);
  ASSERT_TRUE(store_->PutArtifact(folder).ok());
  ASSERT_TRUE(store_->GetArtifact(asked_id).ok());
  absl::flat_hash_set<std::string> retired;
  const auto swept = store_->Sweep({}, &retired).value();
  EXPECT_EQ(swept.artifacts, 0);
  EXPECT_EQ(swept.blobs, 1);
  for (const std::string& text : contents) EXPECT_EQ(store_->HasBlob(RefOf(text).sha256()), text != "old") << text;
}

TEST_F(ArtifactStoreTest, ASweepKeepsWhatCameSinceAnUploadUnderWayBegan) {
  const std::string first = store_->PutBytes("first file of a folder")->sha256();
  auto second = store_->StartBlob(RefOf("second")).value();
  absl::flat_hash_set<std::string> retired;
  EXPECT_EQ(store_->Sweep({}, &retired, absl::Now() + absl::Hours(5))->blobs, 0);
  second.reset();
  EXPECT_EQ(store_->Sweep({}, &retired, absl::Now() + absl::Hours(5))->blobs, 1);
  EXPECT_FALSE(store_->HasBlob(first));
}

TEST_F(ArtifactStoreTest, WhatWasLetGoGoesSooner) {
  v1::Artifact old_one, new_one;
  AddFile(&old_one, "config", store_->PutBytes("same in both").value());
  AddFile(&old_one, "weights", store_->PutBytes("old weights").value());
  AddFile(&new_one, "config", RefOf("same in both"));
  AddFile(&new_one, "weights", store_->PutBytes("new weights").value());
  const std::string old_id = store_->PutArtifact(old_one).value(), new_id = store_->PutArtifact(new_one).value();
  ASSERT_TRUE(store_->PutBytes("not named yet").ok());
  SweepOptions options;
  options.live_artifacts = {new_id};
  absl::flat_hash_set<std::string> retired = {old_id, new_id, Sha256Hex("gone")};
  EXPECT_EQ(store_->Sweep(options, &retired)->artifacts, 0);
  EXPECT_EQ(retired, absl::flat_hash_set<std::string>{old_id});
  const auto swept = store_->Sweep(options, &retired, absl::Now() + absl::Minutes(3)).value();
  EXPECT_EQ(swept.artifacts, 1);
  EXPECT_EQ(swept.blobs, 1);
  EXPECT_TRUE(retired.empty());
  EXPECT_FALSE(store_->HasBlob(RefOf("old weights").sha256()));
  for (const char* text : {"same in both", "new weights", "not named yet"})
    EXPECT_TRUE(store_->HasBlob(RefOf(text).sha256())) << text;
}

TEST_F(ArtifactStoreTest, ADamagedFolderStopsTheSweepBeforeItRemovesItsBlobs) {
  v1::Artifact live;
  AddFile(&live, "a", store_->PutBytes("1").value());
  const std::string id = store_->PutArtifact(live).value();
  std::ofstream(root_ + "/listings/" + id.substr(0, 2) + "/" + id) << "nonsense";
  SweepOptions options;
  options.live_artifacts = {id};
  absl::flat_hash_set<std::string> retired;
  EXPECT_EQ(store_->Sweep(options, &retired, absl::Now() + absl::Hours(2)).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_TRUE(store_->HasBlob(RefOf("1").sha256()));
}

TEST_F(ArtifactStoreTest, OpensOnlyOnceAtATime) {
  EXPECT_EQ(ArtifactStore::Open({.root = root_}).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace retort::storage

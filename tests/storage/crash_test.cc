// What a crash leaves: acknowledged records are all there, a torn tail opens, other damage does not.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include "common/file.h"
#include "storage/artifact_store.h"
#include "tests/storage/store_fixture.h"

namespace retort::storage {
namespace {

namespace fs = std::filesystem;

class CrashTest : public StoreFixture {
 protected:
  std::string NewestLog(const std::string& folder) {
    std::string newest;
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (entry.path().extension() == ".log") newest = std::max(newest, entry.path().string());
    }
    return newest;
  }
  // Opens a copy of the store whose newest log was changed by `damage`.
  absl::StatusOr<std::unique_ptr<SampleStore>> OpenDamaged(const std::function<void(const std::string& log)>& damage) {
    copy_ = folder_ + "_copy";
    fs::remove_all(copy_);
    fs::copy(folder_, copy_, fs::copy_options::recursive);
    damage(NewestLog(copy_));
    return SampleStore::Open({.path = copy_});
  }
  ~CrashTest() override { fs::remove_all(copy_); }
  std::string copy_;
};

TEST_F(CrashTest, KillNineLosesNothingThatWasAcknowledged) {
  store_.reset();
  const std::string writer = fs::read_symlink("/proc/self/exe").parent_path() / "store_writer";
  std::mt19937 random(std::random_device{}());
  std::map<int64_t, std::string> acknowledged;
  for (int round = 0; round < 4; ++round) {
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      dup2(pipe_ends[1], STDOUT_FILENO);
      close(pipe_ends[0]);
      close(pipe_ends[1]);
      execl(writer.c_str(), writer.c_str(), folder_.c_str(), std::to_string(round).c_str(), nullptr);
      _exit(127);
    }
    close(pipe_ends[1]);
    std::string output;
    char buffer[4096];
    const size_t kill_after = 20'000 + random() % 100'000;
    ssize_t bytes_read;
    bool killed = false;
    while ((bytes_read = read(pipe_ends[0], buffer, sizeof(buffer))) > 0) {
      output.append(buffer, static_cast<size_t>(bytes_read));
      if (!killed && output.size() > kill_after) {
        kill(child, SIGKILL);
        killed = true;
      }
    }
    close(pipe_ends[0]);
    int exit_status = 0;
    ASSERT_EQ(waitpid(child, &exit_status, 0), child);
    ASSERT_TRUE(killed && WIFSIGNALED(exit_status)) << "the writer ended by itself; status " << exit_status;

    std::istringstream lines(output.substr(0, output.rfind('\n') + 1));
    std::string line;
    std::getline(lines, line);
    ASSERT_EQ(line, "ready");
    size_t fresh = 0;
    while (std::getline(lines, line)) {
      const size_t blank = line.find(' ');
      ASSERT_TRUE(acknowledged.emplace(std::stoll(line.substr(0, blank)), line.substr(blank + 1)).second)
          << "acknowledged twice: " << line;
      ++fresh;
    }
    ASSERT_GT(fresh, 10u);
    Reopen();
    std::map<int64_t, std::string> stored;
    for (auto& [index, text] : List("s")) stored[index] = text;
    for (const auto& [index, text] : acknowledged) ASSERT_EQ(stored[index], text) << "prompt " << index;
    ExpectSound();
    store_.reset();
  }
}

TEST_F(CrashTest, ASweepThatIsKilledLeavesEveryFolderWithItsBlobs) {
  const std::string writer = fs::read_symlink("/proc/self/exe").parent_path() / "store_writer";
  const std::string root = folder_ + "_artifacts";
  int kills = 0;
  for (const char* point : {"artifacts.before_remove", "artifacts.before_unlink"}) {
    for (int passage = 1;; ++passage) {
      fs::remove_all(root);
      std::vector<std::string> ids;
      {
        const auto store = ArtifactStore::Open({.root = root}).value();
        const v1::BlobRef shared = store->PutBytes("shared").value();
        for (const std::string name : {"live", "dead", "dead too"}) {
          v1::Artifact artifact;
          for (const auto& [path, blob] : {std::pair{"own", store->PutBytes(name).value()}, {"shared", shared}}) {
            v1::ArtifactFile& file = *artifact.add_files();
            file.set_path(path);
            *file.mutable_blob() = blob;
          }
          ids.push_back(store->PutArtifact(artifact).value());
        }
      }
      const pid_t child = fork();
      if (child == 0) {
        setenv("RETORT_FAULT", (std::string(point) + ":" + std::to_string(passage)).c_str(), 1);
        execl(writer.c_str(), writer.c_str(), "sweep", root.c_str(), ids[0].c_str(), nullptr);
        _exit(127);
      }
      int exit_status = 0;
      ASSERT_EQ(waitpid(child, &exit_status, 0), child);
      const bool killed = WIFSIGNALED(exit_status);
      kills += killed;
      ASSERT_TRUE(killed || WEXITSTATUS(exit_status) == 0) << exit_status;

      const auto store = ArtifactStore::Open({.root = root}).value();
      EXPECT_TRUE(fs::is_empty(root + "/incoming"));
      for (const std::string& id : ids) {
        const auto artifact = store->GetArtifact(id);
        EXPECT_TRUE(artifact.ok() || absl::IsNotFound(artifact.status())) << artifact.status();
        EXPECT_TRUE(artifact.ok() || id != ids[0]);
        if (!artifact.ok()) continue;
        for (const v1::ArtifactFile& file : artifact->files()) {
          const absl::Status read =
              store->ReadBlob(file.blob().sha256(), 0, 0, [](absl::string_view) { return absl::OkStatus(); });
          EXPECT_TRUE(read.ok()) << point << " " << passage << ": " << read;
        }
      }
      // The next sweep finishes the work.
      SweepOptions options;
      options.live_artifacts = {ids[0]};
      absl::flat_hash_set<std::string> retired;
      ASSERT_TRUE(store->Sweep(options, &retired, absl::Now() + absl::Hours(2)).ok());
      EXPECT_EQ(store->GetArtifact(ids[1]).status().code(), absl::StatusCode::kNotFound);
      EXPECT_EQ(store->GetArtifact(ids[2]).status().code(), absl::StatusCode::kNotFound);
      EXPECT_FALSE(store->HasBlob(Sha256Hex("dead")));
      EXPECT_TRUE(store->HasBlob(Sha256Hex("shared")));
      if (!killed) break;
    }
  }
  EXPECT_EQ(kills, 8);  // two folders and two blobs, at both points
  fs::remove_all(root);
}

TEST_F(CrashTest, ATornTailOpensWithAllThatWasAcknowledged) {
  PrepareSet("s", 1, {"p0", "p1", "p2", "p3"});
  const auto leased = Acquire(Ref("a", 1), "s", 4);
  std::vector<uintmax_t> sizes = {fs::file_size(NewestLog(folder_))};
  for (int i = 0; i < 4; ++i) {
    Commit(Ref("a", 1), {Item(leased->samples(i), "text" + std::to_string(i))});
    sizes.push_back(fs::file_size(NewestLog(folder_)));
    ASSERT_GT(sizes[static_cast<size_t>(i) + 1], sizes[static_cast<size_t>(i)]);
  }
  store_.reset();
  for (size_t commits = 0; commits < 4; ++commits) {
    for (const uintmax_t size : {sizes[commits], sizes[commits] + 1, sizes[commits] + 10, sizes[commits + 1] - 1}) {
      auto opened = OpenDamaged([&](const std::string& log) { fs::resize_file(log, size); });
      ASSERT_TRUE(opened.ok()) << "cut to " << size << ": " << opened.status();
      EXPECT_EQ((*opened)->GetSampleSet("s")->trace_count(), static_cast<int64_t>(commits)) << "cut to " << size;
    }
  }
  // Zeros that a file system left behind the last record.
  auto opened = OpenDamaged([&](const std::string& log) { fs::resize_file(log, sizes[4] + 5000); });
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->GetSampleSet("s")->trace_count(), 4);
}

TEST_F(CrashTest, DamageBeforeTheTailIsRefusedNotSkipped) {
  PrepareSet("s", 1, {"p0", "p1"});
  const auto leased = Acquire(Ref("a", 1), "s", 2);
  const auto before = fs::file_size(NewestLog(folder_));
  Commit(Ref("a", 1), {Item(leased->samples(0), "text0")});
  const auto middle = fs::file_size(NewestLog(folder_));
  Commit(Ref("a", 1), {Item(leased->samples(1), "text1")});
  store_.reset();
  for (const auto at : {before + 20, middle - 5}) {
    const auto opened = OpenDamaged([&](const std::string& log) {
      std::fstream file(log, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(static_cast<std::streamoff>(at));
      const char byte = static_cast<char>(file.get() ^ 0x40);
      file.seekp(static_cast<std::streamoff>(at));
      file.put(byte);
    });
    EXPECT_EQ(opened.status().code(), absl::StatusCode::kDataLoss) << "at " << at << ": " << opened.status();
  }
  // A bit flipped in the last record, with nothing after it, is damage too: the record was whole.
  const auto opened = OpenDamaged([&](const std::string& log) {
    std::fstream file(log, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(middle + 20));
    file.put('\x7f');
  });
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kDataLoss) << opened.status();
}

}  // namespace
}  // namespace retort::storage

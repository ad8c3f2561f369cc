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

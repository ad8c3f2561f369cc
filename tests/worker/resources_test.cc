#include "worker/resources.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "common/file.h"
#include "common/id.h"

namespace retort::worker {
namespace {

class ResourcesTest : public testing::Test {
 protected:
  ~ResourcesTest() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& contents) {
    ASSERT_TRUE(MakeFolders(root_ + path.substr(0, path.rfind('/'))).ok());
    ASSERT_TRUE(WriteFileAtomically(root_ + path, contents).ok());
  }
  const std::string root_ = testing::TempDir() + "/resources_" + RandomHex(12);
};

TEST_F(ResourcesTest, MemoryIsTheMachinesCutByTheCgroup) {
  Write("/proc/meminfo", "MemTotal:       1048576 kB\nMemFree:  5 kB\n");
  EXPECT_EQ(DetectMemoryBytes(root_), int64_t{1} << 30);
  Write("/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(DetectMemoryBytes(root_), int64_t{1} << 30);
  Write("/sys/fs/cgroup/memory.max", "536870912\n");
  EXPECT_EQ(DetectMemoryBytes(root_), int64_t{1} << 29);
}

TEST_F(ResourcesTest, VersionOneCgroupsCountToo) {
  Write("/proc/meminfo", "MemTotal:       1048576 kB\n");
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(DetectMemoryBytes(root_), int64_t{1} << 30);
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n");
  EXPECT_EQ(DetectMemoryBytes(root_), 1000);
}

TEST(Resources, ThisMachine) {
  const v1::WorkerResources resources = DetectResources(0);
  EXPECT_GE(resources.cpu_cores(), 1);
  EXPECT_EQ(resources.cpu_slots(), std::max(4, resources.cpu_cores()));
  EXPECT_GT(resources.memory_bytes(), int64_t{1} << 26);
  EXPECT_EQ(DetectResources(2).cpu_slots(), 2);
}

TEST(FilterVisible, ReadsCudaVisibleDevicesAsCudaDoes) {
  const std::vector<DriverGpu> gpus = {
      {.index = 0, .uuid = "GPU-aa11"}, {.index = 1, .uuid = "GPU-bb22"}, {.index = 2, .uuid = "GPU-cc33"}};
  const auto indices = [&](const char* value) {
    std::vector<int> result;
    for (const DriverGpu& gpu : FilterVisible(gpus, value)) result.push_back(gpu.index);
    return result;
  };
  EXPECT_EQ(indices(nullptr), std::vector<int>({0, 1, 2}));
  EXPECT_EQ(indices(""), std::vector<int>());
  EXPECT_EQ(indices("2, 0"), std::vector<int>({2, 0}));
  EXPECT_EQ(indices("1,-1,0"), std::vector<int>({1}));
  EXPECT_EQ(indices("GPU-cc,0"), std::vector<int>({2, 0}));
}

}  // namespace
}  // namespace retort::worker

// A folder with a small job in it, and the real distctl to run there.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

namespace retort::cli {

struct Ended {
  int exit_code = -1;
  std::string out;
  std::string err;
};

class DistctlTest : public testing::Test {
 protected:
  void SetUp() override;
  void TearDown() override;

  void Write(const std::string& path, const std::string& text);
  static std::string Read(const std::filesystem::path& path);

  // Runs `distctl <arguments>` by a shell in the test's folder, with a state folder of its own and the environment
  // words of `environment_`.
  Ended Distctl(const std::string& arguments);

  std::filesystem::path folder_;
  std::string bin_;
  std::string environment_ = "RETORT_COORDINATOR=";
};

}  // namespace retort::cli

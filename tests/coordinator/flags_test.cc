#include "coordinator/flags.h"

#include <gtest/gtest.h>

namespace retort {
namespace {

absl::StatusOr<CoordinatorFlags> Parse(std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), "retort-coordinator");
  return ParseCoordinatorFlags(static_cast<int>(arguments.size()), arguments.data(), "/home/u");
}

TEST(Flags, DefaultsMakeALoopbackCoordinator) {
  const auto flags = Parse({});
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_EQ(flags->state_dir, "/home/u/.retort/coordinator");
  EXPECT_EQ(flags->server.token_file, "/home/u/.retort/token");
  EXPECT_EQ(flags->server.address, "127.0.0.1:0");
  EXPECT_EQ(flags->options.lost_after, absl::Seconds(10));
}

TEST(Flags, TokenLiesBesideTheStateFolder) {
  EXPECT_EQ(Parse({"--state-dir", "/d/coordinator/"})->server.token_file, "/d/token");
  EXPECT_EQ(Parse({"--state-dir", "here"})->server.token_file, "token");
  EXPECT_EQ(Parse({"--tls-client-ca", "/ca"})->server.token_file, "");
}

TEST(Flags, WrongOnesAreNamed) {
  EXPECT_EQ(Parse({"--no-such-flag"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Parse({"--lost-after-ms", "600", "--suspect-after-ms", "500"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Parse({"--help"})->show_help);
}

}  // namespace
}  // namespace retort

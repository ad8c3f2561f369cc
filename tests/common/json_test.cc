#include "common/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/file.h"

namespace retort {
namespace {

TEST(Json, SaysWhatIsWrongAndWhere) {
  const absl::Status status = ParseJson("{\"a\": }", "config.json").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("config.json: not valid JSON"), std::string::npos) << status;
}

TEST(Json, BoundsDepth) {
  EXPECT_FALSE(ParseJson(std::string(100, '[') + std::string(100, ']'), "x").ok());
  EXPECT_TRUE(ParseJson(std::string(30, '[') + std::string(30, ']'), "x").ok());
  EXPECT_FALSE(ParseJson(std::string(1'000'000, '['), "x").ok());
}

TEST(Json, NamesTheLineOfAJsonlFile) {
  const std::string path = testing::TempDir() + "/json_test.jsonl";
  ASSERT_TRUE(WriteFileAtomically(path, "{\"a\": 1}\n\n{\"a\": 2}\r\n{\"a\"\n").ok());
  int64_t sum = 0;
  const absl::Status status = ForEachJsonLine(path, [&](int64_t, absl::string_view, const nlohmann::json& row) {
    sum += row["a"].get<int>();
    return absl::OkStatus();
  });
  EXPECT_EQ(sum, 3);
  EXPECT_NE(status.message().find(path + ":4: "), std::string::npos) << status;
}

}  // namespace
}  // namespace retort

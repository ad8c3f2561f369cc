#include "common/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/json_line.h"

namespace retort {
namespace {

TEST(Json, SaysWhatIsWrongAndWhere) {
  const absl::Status status = ParseJson("{\"a\": }", "config.json").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("config.json: not valid JSON"), std::string::npos) << status;
}

TEST(Json, LinesHoldNothingThatEndsALine) {
  const std::string text = "a\u2028b\u2029c\u0085d";
  const std::string line = WithoutLineBreaks(nlohmann::json(text).dump());
  EXPECT_EQ(line, R"("a\u2028b\u2029c\u0085d")");
  EXPECT_EQ(nlohmann::json::parse(line).get<std::string>(), text);
}

TEST(Json, BoundsDepth) {
  EXPECT_FALSE(ParseJson(std::string(100, '[') + std::string(100, ']'), "x").ok());
  EXPECT_TRUE(ParseJson(std::string(30, '[') + std::string(30, ']'), "x").ok());
  EXPECT_FALSE(ParseJson(std::string(1'000'000, '['), "x").ok());
}

TEST(Json, IntegersOfMoreThan64BitsAreNamed) {
  EXPECT_TRUE(CheckIntegers(R"([18446744073709551615, -9223372036854775808, 1e300, 123456789012345678901.5])").ok());
  EXPECT_TRUE(CheckIntegers(R"({"36893488147419103232": "a\\", "b": "\"36893488147419103232"})").ok());
  for (const char* number : {"18446744073709551616", "-9223372036854775809", "100000000000000000000000"}) {
    const absl::Status status = CheckIntegers(absl::StrCat("{\"a\":[\"\\\\\",", number, "]}"));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(status.message().find(number), std::string::npos) << status;
  }
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

// The texts and lines of a file's rows, or the error.
std::string Rows(const std::string& contents) {
  const std::string path = testing::TempDir() + "/json_test_rows.json";
  EXPECT_TRUE(WriteFileAtomically(path, contents).ok());
  std::string rows;
  const absl::Status status =
      ForEachJsonLine(path, [&](int64_t line, absl::string_view text, const nlohmann::json& row) {
        EXPECT_EQ(nlohmann::json::parse(text), row);
        absl::StrAppend(&rows, line, ":", text, "\n");
        return absl::OkStatus();
      });
  if (status.ok()) return rows;
  return std::string(status.message().substr(path.size()));
}

TEST(Json, AListIsItsRows) {
  EXPECT_EQ(Rows("[]"), "");
  EXPECT_EQ(Rows("\n [ ]\n"), "");
  EXPECT_EQ(Rows("[{\"a\": \"},]\\\"[\"}, 7]"), "1:{\"a\": \"},]\\\"[\"}\n1:7\n");
  EXPECT_EQ(Rows("\n[\n  {\n    \"a\": [1, \"b  c\"],\r\n  \"d\": {}\n  },\n  {\"a\": 2}\n]\n"),
            "3:{ \"a\": [1, \"b  c\"], \"d\": {} }\n7:{\"a\": 2}\n");
}

TEST(Json, AListThatIsNone) {
  EXPECT_EQ(Rows("[{}").substr(0, 19), ":1: the list does n");
  EXPECT_EQ(Rows("[{},\n]").substr(0, 11), ":2: a comma");
  EXPECT_EQ(Rows("[,{}]").substr(0, 11), ":1: a comma");
  EXPECT_EQ(Rows("[{},\n\n{]}\n]").substr(0, 14), ":3: not valid ");
  EXPECT_EQ(Rows("[1 2]").substr(0, 14), ":1: not valid ");
  EXPECT_EQ(Rows("[}]").substr(0, 14), ":1: not valid ");
  EXPECT_EQ(Rows("[{}]\n{}").substr(0, 19), ":2: text after the ");
}

}  // namespace
}  // namespace retort

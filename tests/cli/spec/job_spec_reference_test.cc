// docs/job-spec.md is the schema table in another form.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/spec/job_file.h"
#include "cli/spec/schema.h"
#include "common/file.h"

namespace retort::cli {
namespace {

std::string DocumentPath() { return absl::StrCat(std::getenv("RETORT_SOURCE_DIR"), "/docs/job-spec.md"); }

// After a change of the table: RETORT_UPDATE_DOCS=1 build/dev/tests/cli_spec_test (with RETORT_SOURCE_DIR set).
TEST(JobSpecReferenceTest, DocumentIsUpToDate) {
  ASSERT_NE(std::getenv("RETORT_SOURCE_DIR"), nullptr);
  if (std::getenv("RETORT_UPDATE_DOCS") != nullptr) {
    ASSERT_TRUE(WriteFileAtomically(DocumentPath(), JobSpecReference()).ok());
  }
  const auto document = ReadFile(DocumentPath());
  ASSERT_TRUE(document.ok()) << document.status();
  EXPECT_EQ(*document, JobSpecReference()) << "run this test with RETORT_UPDATE_DOCS=1";
}

TEST(JobSpecReferenceTest, ItsExampleIsValid) {
  const std::string text = JobSpecReference();
  const size_t begin = text.find("```yaml\n") + 8;
  const std::string example = text.substr(begin, text.find("```", begin) - begin);
  Diagnostics diagnostics;
  const BoundSpec bound = ParseJobSpec(example, "example", {}, &diagnostics);
  EXPECT_EQ(diagnostics.ToString(), "");
  EXPECT_EQ(bound.spec.name(), "math-to-small");
}

}  // namespace
}  // namespace retort::cli

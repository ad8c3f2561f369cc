#include "storage/database.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace retort::storage {
namespace {

TEST(TraceKeyCodec, RoundTripsAndKeepsOrder) {
  std::mt19937 random(7);
  const auto hash = [&] {
    std::string bytes(kHashBytes, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    return bytes;
  };
  for (int i = 0; i < 200; ++i) {
    v1::TraceKey key;
    key.set_model_revision(hash());
    key.set_sampling_hash(hash());
    key.set_prompt_hash(hash());
    key.set_sample_index(static_cast<int32_t>(random() & 0x7fffffff));
    const std::string encoded = EncodeTraceKey(key).value();
    EXPECT_EQ(DecodeTraceKey(encoded)->SerializeAsString(), key.SerializeAsString());
    v1::TraceKey next = key;
    next.set_sample_index(key.sample_index() == INT32_MAX ? 0 : key.sample_index() + 1);
    EXPECT_EQ(encoded < EncodeTraceKey(next).value(), key.sample_index() < next.sample_index());
  }
  EXPECT_EQ(DecodeTraceKey("short").status().code(), absl::StatusCode::kDataLoss);
}

TEST(TraceKeyCodec, RefusesMalformedKeys) {
  v1::TraceKey key;
  EXPECT_EQ(EncodeTraceKey(key).status().code(), absl::StatusCode::kInvalidArgument);
  key.set_model_revision(std::string(32, 'm'));
  key.set_sampling_hash(std::string(32, 's'));
  key.set_prompt_hash(std::string(32, 'p'));
  EXPECT_TRUE(EncodeTraceKey(key).ok());
  key.set_sample_index(-1);
  EXPECT_FALSE(EncodeTraceKey(key).ok());
}

TEST(PromptKeyCodec, OrdersByIndexWithinASet) {
  EXPECT_LT(EncodePromptKey("s", 255), EncodePromptKey("s", 256));
  EXPECT_EQ(DecodeIndexSuffix(EncodePromptKey("s", 123456789)), 123456789);
  // A set whose name continues another's is not within its prefix.
  EXPECT_NE(EncodePromptKey("s2", 0).substr(0, 2), EncodePromptPrefix("s"));
  EXPECT_EQ(DecodeU64(EncodeU64(0x0123456789abcdef)).value(), 0x0123456789abcdefu);
}

}  // namespace
}  // namespace retort::storage

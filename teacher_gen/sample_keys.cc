#include "teacher_gen/sample_keys.h"

#include <bit>

#include "common/hash.h"

namespace retort {
namespace {

uint64_t FirstEightBytes(const Sha256Digest& digest) {
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = (value << 8) | digest[static_cast<size_t>(i)];
  return value;
}

}  // namespace

std::string PromptHashOfTokens(const std::vector<int32_t>& token_ids) {
  Sha256 hash;
  hash.UpdateField("retort.prompt.tokens.v1");
  hash.UpdateU64(token_ids.size());
  for (const int32_t id : token_ids) {
    const auto bits = static_cast<uint32_t>(id);
    const uint8_t bytes[4] = {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8),
                              static_cast<uint8_t>(bits >> 16), static_cast<uint8_t>(bits >> 24)};
    hash.Update(bytes, sizeof(bytes));
  }
  return ToBytes(hash.Finish());
}

std::string PromptHashOfMessages(absl::string_view messages_json) {
  Sha256 hash;
  hash.UpdateField("retort.prompt.messages.v1");
  hash.UpdateField(messages_json);
  return ToBytes(hash.Finish());
}

std::string SamplingHash(const v1::Sampling& sampling) {
  Sha256 hash;
  hash.UpdateField("retort.sampling.v1");
  hash.UpdateU64(std::bit_cast<uint64_t>(sampling.temperature()));
  hash.UpdateU64(std::bit_cast<uint64_t>(sampling.top_p()));
  hash.UpdateU64(static_cast<uint64_t>(sampling.max_tokens()));
  hash.UpdateU64(sampling.seed());
  return ToBytes(hash.Finish());
}

std::string RevisionWithAdapter(const std::string& model_revision, absl::string_view adapter_artifact_id) {
  if (adapter_artifact_id.empty()) return model_revision;
  Sha256 hash;
  hash.UpdateField("retort.revision.adapter.v1");
  hash.UpdateField(model_revision);
  hash.UpdateField(adapter_artifact_id);
  return ToBytes(hash.Finish());
}

std::string EndpointRevision(absl::string_view base_url, absl::string_view model) {
  Sha256 hash;
  hash.UpdateField("retort.revision.endpoint.v1");
  hash.UpdateField(base_url);
  hash.UpdateField(model);
  return ToBytes(hash.Finish());
}

uint64_t RandomKey(uint64_t seed, const v1::TraceKey& key) {
  Sha256 hash;
  hash.UpdateField("retort.random.v1");
  hash.UpdateU64(seed);
  hash.UpdateField(key.prompt_hash());
  hash.UpdateU64(static_cast<uint64_t>(key.sample_index()));
  hash.UpdateField(key.model_revision());
  hash.UpdateField(key.sampling_hash());
  return FirstEightBytes(hash.Finish());
}

uint64_t RandomKeyOfPrompt(uint64_t seed, const std::vector<int32_t>& token_ids, int64_t sample_index) {
  v1::TraceKey key;
  key.set_prompt_hash(PromptHashOfTokens(token_ids));
  key.set_sample_index(static_cast<int32_t>(sample_index));
  return RandomKey(seed, key);
}

}  // namespace retort

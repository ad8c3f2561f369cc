// What names a sample, and the randomness that follows from the name alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/sample_service.pb.h"

namespace retort {

// 32 bytes each.
std::string PromptHashOfTokens(const std::vector<int32_t>& token_ids);
std::string PromptHashOfMessages(absl::string_view messages_json);
// Of everything but n.
std::string SamplingHash(const v1::Sampling& sampling);
// Of weights with an adapter; the weights' own revision where `adapter_artifact_id` is empty.
std::string RevisionWithAdapter(const std::string& model_revision, absl::string_view adapter_artifact_id);
std::string EndpointRevision(absl::string_view base_url, absl::string_view model);

// The key of a sample's random stream: the same for whoever generates it.
uint64_t RandomKey(uint64_t seed, const v1::TraceKey& key);
// The same for `generate`, where a sample is named by its prompt and index alone.
uint64_t RandomKeyOfPrompt(uint64_t seed, const std::vector<int32_t>& token_ids, int64_t sample_index);

}  // namespace retort

// The prompts of a sample set: rows of the user's files as conversations.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/sample_service.pb.h"

namespace retort {

// Appends the rows of `source`, whose contents lie in `path`: row_json, messages_json and answer are filled. Takes the
// first floor(weight * rows). The user turn is the problem, a blank line and `instruction` where there is one; a system
// turn comes before where `system` is not empty. A row's problem is a string, or a list of messages that ends with the
// user's. Errors: kInvalidArgument ("<path as the user wrote it>:<line>: ..."), kResourceExhausted (a line too long).
absl::Status AppendPrompts(const v1::PromptSource& source, const std::string& path, const std::string& system,
                           const std::string& instruction, std::vector<v1::Prompt>& prompts);

}  // namespace retort

// Samples through an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, hosted ones).
#pragma once

#include <memory>

#include "teacher_gen/chat_client.h"
#include "teacher_gen/sample_backend.h"

namespace retort {

// `max_concurrency` requests are in flight at most, each on a thread and connection of its own. A request that still
// fails after its retries, or whose prompt does not fit, gives a trace with finish_reason "error"; a refusal for good
// (wrong key, unknown model) ends Poll. `options.cancelled` is set by the backend itself.
std::unique_ptr<SampleBackend> MakeOpenAiBackend(ChatClientOptions options, int64_t max_concurrency);

}  // namespace retort

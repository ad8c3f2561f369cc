// Samples through an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, hosted ones).
#pragma once

#include <memory>

#include "teacher_gen/chat_client.h"
#include "teacher_gen/sample_backend.h"

namespace retort {

// `max_concurrency` requests are in flight at most, each on a thread and connection of its own. A sample ends with
// finish_reason "error" only where the fault is its prompt's: its request still fails after the retries, or is refused
// (400, 413, 422: too long, filtered), while the endpoint answers others; where no other request tells, the endpoint is
// asked something trivial. Otherwise Poll ends: kUnavailable (the endpoint is away), or what a refusal of every request
// says (wrong key, unknown model, impossible sampling). `options.cancelled` is set by the backend itself.
std::unique_ptr<SampleBackend> MakeOpenAiBackend(ChatClientOptions options, int64_t max_concurrency);

}  // namespace retort

// Chat templates with {% generation %} blocks for models whose own have none, as TRL swaps them in under
// assistant_only_loss.
#pragma once

#include "absl/strings/string_view.h"

namespace retort {

// For a template as a model ships it, to the byte: Llama 3, Phi-3, Phi-3.5, Qwen2.5, Qwen3, Qwen3-2507, DeepSeek-V3 and
// R1-Distill. Empty: none is known.
absl::string_view TrainingTemplate(absl::string_view source);

}  // namespace retort

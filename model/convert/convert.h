// Between a Hugging Face folder and a GGUF file, tensor by tensor: memory holds one of them at a time.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/gguf/types.h"

namespace retort {

struct ConvertOptions {
  bool overwrite = false;
  // What the reader of the result should know; never null.
  std::vector<std::string>* warnings = nullptr;
};

// Writes `file` as llama.cpp's converter and quantiser would. It appears whole or not at all. Errors: kAlreadyExists,
// kNotFound, kInvalidArgument (what is wrong, in which file; a value that the type cannot hold), kUnimplemented (what a
// GGUF file cannot say).
absl::Status ConvertToGguf(const std::string& folder, const std::string& file, gguf::FileType type,
                           const ConvertOptions& options);

// Writes a folder that transformers loads: config, generation config, tokenizer, weights (sharded above 5 GB). Without
// `dtype`: the one that loses nothing (bf16 or f16 where every matrix is stored so and the rest fits it, else f32). The
// folder appears whole or not at all. Errors: as above.
absl::Status ConvertToHf(const std::string& file, const std::string& folder, std::optional<c10::ScalarType> dtype,
                         const ConvertOptions& options);

}  // namespace retort

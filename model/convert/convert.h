// Between Hugging Face folders and GGUF files, tensor by tensor: memory holds one of them at a time.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "model/gguf/types.h"
#include "model/quantized/quantise.h"

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

// How a folder's weights are stored.
struct HfFormat {
  // Of all tensors; without it, from a folder that which its config.json names, from a GGUF file the one that loses
  // nothing (bf16 or f16 where every matrix is stored so and the rest fits it, else f32).
  std::optional<c10::ScalarType> dtype;
  // Linear modules (not the head, embeddings, norms, experts and their gate) in 4 or 8 bits, as bitsandbytes keeps
  // them; quantised from `dtype`.
  std::optional<QuantiseOptions> quantise;
};

// Writes a folder that transformers loads from a GGUF file or another folder: config, generation config, tokenizer,
// weights (sharded above 5 GB). What the source has in fewer bits is widened. The folder appears whole or not at all.
// Errors: as above.
absl::Status ConvertToHf(const std::string& source, const std::string& folder, const HfFormat& format,
                         const ConvertOptions& options);

}  // namespace retort

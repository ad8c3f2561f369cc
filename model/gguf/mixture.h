// Which type each tensor of a GGUF file gets: what llama.cpp's converter and quantiser choose.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "model/gguf/config.h"
#include "model/gguf/types.h"
#include "model/gguf/writer.h"

namespace retort::gguf {

struct NamedFileType {
  const char* name;  // --type
  FileType type;
};
inline constexpr NamedFileType kFileTypes[] = {{"f32", FileType::kF32},
                                               {"f16", FileType::kF16},
                                               {"bf16", FileType::kBF16},
                                               {"q8_0", FileType::kQ8_0},
                                               {"q4_k_m", FileType::kQ4_K_M}};

// Norms, biases, gates and whatever is no matrix stay F32. Q4_K_M gives more bits to output, values and ffn_down where
// they count; rows that are no multiple of a block take the nearest type with a smaller block, at last F16.
TensorType ChooseType(FileType file_type, absl::string_view architecture, const Geometry& geometry,
                      const std::string& name, const std::vector<int64_t>& shape);

}  // namespace retort::gguf

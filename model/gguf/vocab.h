// Between a GGUF file's tokenizer (tokenizer.ggml.*) and a Hugging Face folder's tokenizer files.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/gguf/file.h"
#include "model/gguf/writer.h"

namespace retort::gguf {

// File name -> contents: tokenizer.json, tokenizer_config.json, special_tokens_map.json. Byte-level BPE ("gpt2") and
// SentencePiece BPE ("llama") are read; where the file carries a tokenizer.json of its own (tokenizer.huggingface.json)
// that one is taken. Without a tokenizer ("none") there are no files. Errors: kInvalidArgument, kNotFound,
// kUnimplemented (a kind, or a tokenizer.ggml.pre, by name).
absl::StatusOr<std::map<std::string, std::string>> TokenizerFilesFromGguf(const File& file);

// A GGUF file's tokenizer as a folder, for what reads folders: those files and a config.json that says the model's
// type. Gone with the object.
class UnpackedTokenizer {
 public:
  // Errors: as TokenizerFilesFromGguf; kNotFound when the file has no tokenizer.
  static absl::StatusOr<UnpackedTokenizer> Create(const std::string& path);
  UnpackedTokenizer(UnpackedTokenizer&& other) noexcept : folder_(std::move(other.folder_)) { other.folder_.clear(); }
  ~UnpackedTokenizer();

  const std::string& folder() const { return folder_; }

 private:
  UnpackedTokenizer() = default;

  std::string folder_;
};

// Adds `folder`'s tokenizer and chat template to `metadata`: as llama.cpp's converter does, and the whole
// tokenizer.json beside that, so that nothing is lost on the way back. What llama.cpp will do differently is put into
// `warnings`. Errors: kInvalidArgument (files that are not sound, more tokens than `vocab_size`).
absl::Status TokenizerToMetadata(const std::string& folder, int64_t vocab_size, Metadata& metadata,
                                 std::vector<std::string>& warnings);

}  // namespace retort::gguf

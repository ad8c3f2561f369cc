// SentencePiece BPE: merges from scores, scores from merges, and the pieces of a tokenizer.model.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/gguf/types.h"

namespace retort::gguf {

using Merge = std::pair<std::string, std::string>;

// The merges by which Hugging Face's BPE does what SentencePiece does by scores: every way to put a token together from
// two, the best score first. As transformers makes them of a GGUF file.
std::vector<Merge> MergesFromScores(const std::vector<std::string>& tokens, const std::vector<double>& scores);

struct Piece {
  std::string text;
  float score = 0;
  TokenType type = TokenType::kNormal;
};
// `contents`: a tokenizer.model (sentencepiece's ModelProto). Errors: kInvalidArgument.
absl::StatusOr<std::vector<Piece>> ParseSentencePieceModel(absl::string_view contents);

}  // namespace retort::gguf

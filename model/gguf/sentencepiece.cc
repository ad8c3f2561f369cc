#include "model/gguf/sentencepiece.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace retort::gguf {
namespace {

// Longer tokens are written out, never merged.
constexpr size_t kMaxMergedBytes = 1024;

// Protobuf's wire format, as far as it is needed here.
class Wire {
 public:
  explicit Wire(absl::string_view bytes) : bytes_(bytes) {}

  bool done() const { return position_ == bytes_.size(); }

  // Reads the next field: number and wire type, and its bytes (length-delimited) or number.
  absl::Status Next() {
    ASSIGN_OR_RETURN(const uint64_t tag, Varint());
    field = tag >> 3;
    type = static_cast<int>(tag & 7);
    switch (type) {
      case 0: {
        ASSIGN_OR_RETURN(number, Varint());
        return absl::OkStatus();
      }
      case 1:
        return Take(8);
      case 2: {
        ASSIGN_OR_RETURN(const uint64_t size, Varint());
        return Take(size);
      }
      case 5:
        return Take(4);
      default:
        return absl::InvalidArgumentError(absl::StrCat("wire type ", type, " at byte ", position_));
    }
  }

  uint64_t field = 0;
  int type = 0;
  uint64_t number = 0;
  absl::string_view bytes;

 private:
  absl::StatusOr<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (done()) return absl::InvalidArgumentError("cut off inside a number");
      const auto byte = static_cast<uint8_t>(bytes_[position_++]);
      value |= uint64_t{byte & 0x7FU} << shift;
      if (byte < 0x80) return value;
    }
    return absl::InvalidArgumentError(absl::StrCat("a number of more than 10 bytes at byte ", position_));
  }

  absl::Status Take(uint64_t count) {
    if (count > bytes_.size() - position_) {
      return absl::InvalidArgumentError(absl::StrCat("a field of ", count, " bytes at byte ", position_, ", ",
                                                     bytes_.size() - position_, " are left"));
    }
    bytes = bytes_.substr(position_, count);
    position_ += count;
    return absl::OkStatus();
  }

  const absl::string_view bytes_;
  size_t position_ = 0;
};

absl::StatusOr<Piece> ParsePiece(absl::string_view bytes) {
  Wire wire(bytes);
  Piece piece;
  while (!wire.done()) {
    RETURN_IF_ERROR(wire.Next());
    if (wire.field == 1 && wire.type == 2) piece.text = std::string(wire.bytes);
    if (wire.field == 2 && wire.type == 5) std::memcpy(&piece.score, wire.bytes.data(), sizeof(piece.score));
    // The two enums have the same numbers.
    if (wire.field == 3 && wire.type == 0 && wire.number >= 1 && wire.number <= 6) {
      piece.type = static_cast<TokenType>(wire.number);
    }
  }
  return piece;
}

}  // namespace

std::vector<Merge> MergesFromScores(const std::vector<std::string>& tokens, const std::vector<double>& scores) {
  std::unordered_map<std::string_view, double> score_of;
  score_of.reserve(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) score_of[tokens[i]] = scores[i];
  struct Candidate {
    Merge merge;
    double score;
    double left;
    double right;
  };
  std::vector<Candidate> merges;
  for (size_t t = 0; t < tokens.size(); ++t) {
    const std::string_view token = tokens[t];
    if (token.size() > kMaxMergedBytes) continue;
    const double score = score_of.at(token);
    const size_t first = merges.size();
    for (size_t i = 1; i < token.size(); ++i) {
      if ((static_cast<uint8_t>(token[i]) & 0xC0) == 0x80) continue;  // inside a character
      const auto left = score_of.find(token.substr(0, i));
      if (left == score_of.end()) continue;
      const auto right = score_of.find(token.substr(i));
      if (right == score_of.end()) continue;
      merges.push_back({{std::string(left->first), std::string(right->first)}, score, left->second, right->second});
    }
    std::stable_sort(
        merges.begin() + static_cast<ptrdiff_t>(first), merges.end(),
        [](const Candidate& a, const Candidate& b) { return a.left != b.left ? a.left > b.left : a.right > b.right; });
  }
  std::stable_sort(merges.begin(), merges.end(),
                   [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
  std::vector<Merge> result;
  result.reserve(merges.size());
  for (Candidate& candidate : merges) result.push_back(std::move(candidate.merge));
  return result;
}

absl::StatusOr<std::vector<Piece>> ParseSentencePieceModel(absl::string_view contents) {
  constexpr size_t kMaxPieces = 1 << 22;
  Wire wire(contents);
  std::vector<Piece> pieces;
  while (!wire.done()) {
    RETURN_IF_ERROR(wire.Next());
    if (wire.field != 1 || wire.type != 2) continue;
    if (pieces.size() == kMaxPieces) return absl::InvalidArgumentError("more than 4,194,304 pieces");
    ASSIGN_OR_RETURN(Piece piece, ParsePiece(wire.bytes));
    pieces.push_back(std::move(piece));
  }
  if (pieces.empty()) return absl::InvalidArgumentError("holds no pieces: not a SentencePiece model");
  return pieces;
}

}  // namespace retort::gguf

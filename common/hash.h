// SHA-256, whole and incremental.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace retort {

using Sha256Digest = std::array<uint8_t, 32>;

// Incremental SHA-256. Not thread-safe.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void Update(const void* data, size_t size_bytes);
  void Update(absl::string_view data) { Update(data.data(), data.size()); }
  // Length-prefixed (8 bytes, little-endian), so that ("ab", "c") and ("a", "bc") differ.
  void UpdateField(absl::string_view data);
  void UpdateU64(uint64_t value);
  // Call once, last.
  Sha256Digest Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

Sha256Digest Sha256Of(absl::string_view data);
// Lower-case hex.
std::string ToHex(const Sha256Digest& digest);
std::string Sha256Hex(absl::string_view data);
// The 32 bytes as a string, as they stand in protobuf `bytes` fields.
std::string ToBytes(const Sha256Digest& digest);
// Hash of a file's contents, read in slices. Errors: kNotFound, kPermissionDenied, kInternal (read).
absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path);
// Whether `text` is 64 lower-case hex digits.
bool IsSha256Hex(absl::string_view text);

}  // namespace retort

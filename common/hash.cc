#include "common/hash.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace retort {

struct Sha256::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  RETORT_CHECK(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::Update(const void* data, size_t size_bytes) {
  RETORT_CHECK(EVP_DigestUpdate(state_->context, data, size_bytes) == 1);
}

void Sha256::UpdateU64(uint64_t value) {
  uint8_t bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<uint8_t>(value >> (8 * i));
  Update(bytes, sizeof(bytes));
}

void Sha256::UpdateField(absl::string_view data) {
  UpdateU64(data.size());
  Update(data);
}

Sha256Digest Sha256::Finish() {
  Sha256Digest digest;
  unsigned int length = 0;
  RETORT_CHECK(EVP_DigestFinal_ex(state_->context, digest.data(), &length) == 1);
  RETORT_CHECK(length == digest.size());
  return digest;
}

Sha256Digest Sha256Of(absl::string_view data) {
  Sha256 hash;
  hash.Update(data);
  return hash.Finish();
}

std::string ToHex(const Sha256Digest& digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  hex.reserve(2 * digest.size());
  for (const uint8_t byte : digest) {
    hex.push_back(kDigits[byte >> 4]);
    hex.push_back(kDigits[byte & 15]);
  }
  return hex;
}

std::string Sha256Hex(absl::string_view data) { return ToHex(Sha256Of(data)); }

std::string ToBytes(const Sha256Digest& digest) {
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

absl::StatusOr<std::string> Sha256HexOfFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus(absl::StrCat("open ", path), errno);
  Sha256 hash;
  std::vector<char> buffer(1 << 20);
  for (;;) {
    const ssize_t bytes_read = read(fd, buffer.data(), buffer.size());
    if (bytes_read < 0 && errno == EINTR) continue;
    if (bytes_read < 0) {
      const absl::Status status = ErrnoStatus(absl::StrCat("read ", path), errno);
      close(fd);
      return status;
    }
    if (bytes_read == 0) break;
    hash.Update(buffer.data(), static_cast<size_t>(bytes_read));
  }
  close(fd);
  return ToHex(hash.Finish());
}

bool IsSha256Hex(absl::string_view text) {
  return text.size() == 64 &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

}  // namespace retort

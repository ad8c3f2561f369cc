#include "common/id.h"

#include <openssl/rand.h>

#include <vector>

#include "common/check.h"

namespace retort {

std::string RandomHex(int digits) {
  std::vector<unsigned char> bytes(static_cast<size_t>((digits + 1) / 2));
  RETORT_CHECK(RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) == 1);
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (int i = 0; i < digits; ++i) {
    const unsigned char byte = bytes[static_cast<size_t>(i / 2)];
    hex.push_back(kDigits[i % 2 == 0 ? byte >> 4 : byte & 15]);
  }
  return hex;
}

std::string NewRequestId() { return RandomHex(32); }

}  // namespace retort

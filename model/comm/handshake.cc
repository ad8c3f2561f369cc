#include "model/comm/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace retort {
namespace {

constexpr absl::string_view kMagic = "RTG1";

template <typename Integer>
void Append(std::string& out, Integer value) {
  for (size_t i = 0; i < sizeof(value); ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

template <typename Integer>
Integer Read(absl::string_view bytes, size_t at) {
  Integer value = 0;
  for (size_t i = 0; i < sizeof(value); ++i) {
    value |= static_cast<Integer>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
  }
  return value;
}

// `side` keeps one side's code from being played back as the other's.
std::string Mac(absl::string_view secret, absl::string_view side, absl::string_view hello, absl::string_view rest) {
  RETORT_CHECK(secret.size() == kSecretBytes);
  const std::string message = absl::StrCat(side, hello, rest);
  std::string mac(kMacBytes, '\0');
  unsigned int size = 0;
  RETORT_CHECK(HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
                    reinterpret_cast<const unsigned char*>(message.data()), message.size(),
                    reinterpret_cast<unsigned char*>(mac.data()), &size) != nullptr &&
               size == kMacBytes);
  return mac;
}

bool SameMac(absl::string_view a, absl::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

constexpr absl::string_view kListener = "retort gang listener";
constexpr absl::string_view kConnector = "retort gang connector";

}  // namespace

std::string RandomNonce() {
  std::string nonce(kNonceBytes, '\0');
  RETORT_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(nonce.data()), static_cast<int>(nonce.size())) == 1);
  return nonce;
}

std::string EncodeHello(const Hello& hello, absl::string_view nonce) {
  RETORT_CHECK(nonce.size() == kNonceBytes);
  std::string out(kMagic);
  Append(out, hello.from_rank);
  Append(out, hello.to_rank);
  Append(out, hello.generation);
  absl::StrAppend(&out, nonce);
  return out;
}

absl::StatusOr<Hello> DecodeHello(absl::string_view bytes) {
  if (bytes.size() != kHelloBytes || bytes.substr(0, kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("not a rank of a gang");
  }
  return Hello{Read<uint32_t>(bytes, 4), Read<uint32_t>(bytes, 8), Read<uint64_t>(bytes, 12)};
}

std::string MakeChallenge(absl::string_view secret, absl::string_view hello, absl::string_view nonce) {
  return absl::StrCat(nonce, Mac(secret, kListener, hello, nonce));
}

absl::Status CheckChallenge(absl::string_view secret, absl::string_view hello, absl::string_view challenge) {
  RETORT_CHECK(challenge.size() == kChallengeBytes);
  const absl::string_view nonce = challenge.substr(0, kNonceBytes);
  if (!SameMac(challenge.substr(kNonceBytes), Mac(secret, kListener, hello, nonce))) {
    return absl::PermissionDeniedError("the peer does not know this gang's secret");
  }
  return absl::OkStatus();
}

std::string MakeProof(absl::string_view secret, absl::string_view hello, absl::string_view challenge) {
  return Mac(secret, kConnector, hello, challenge.substr(0, kNonceBytes));
}

absl::Status CheckProof(absl::string_view secret, absl::string_view hello, absl::string_view challenge,
                        absl::string_view proof) {
  if (!SameMac(proof, MakeProof(secret, hello, challenge))) {
    return absl::PermissionDeniedError("the peer does not know this gang's secret");
  }
  return absl::OkStatus();
}

}  // namespace retort

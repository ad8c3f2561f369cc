// How two ranks prove to each other that they belong to the same membership, before any tensor flows.
//
//   connecting rank -> listening rank   hello      who I am, whom I want, which generation, a nonce
//   listening rank  -> connecting rank  challenge  a nonce, and HMAC-SHA-256 of everything so far under the gang's
//   secret connecting rank -> listening rank   proof      the same for the other direction listening rank  ->
//   connecting rank  one byte, kWelcome
// A stranger lacks the secret; a rank of an earlier membership is told apart by its generation. Nothing is allocated
// from what a peer says. Pure functions over fixed-size messages.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace retort {

inline constexpr size_t kNonceBytes = 32;
inline constexpr size_t kMacBytes = 32;
inline constexpr size_t kHelloBytes = 4 + 4 + 4 + 8 + kNonceBytes;
inline constexpr size_t kChallengeBytes = kNonceBytes + kMacBytes;
inline constexpr size_t kProofBytes = kMacBytes;
inline constexpr char kWelcome = 'W';
inline constexpr size_t kSecretBytes = 32;

struct Hello {
  uint32_t from_rank = 0;
  uint32_t to_rank = 0;
  uint64_t generation = 0;
};

std::string RandomNonce();

// The bytes to send; `nonce` is the connecting rank's.
std::string EncodeHello(const Hello& hello, absl::string_view nonce);
// Errors: kInvalidArgument (not one of our hellos).
absl::StatusOr<Hello> DecodeHello(absl::string_view bytes);

std::string MakeChallenge(absl::string_view secret, absl::string_view hello, absl::string_view nonce);
// Errors: kPermissionDenied (the listening rank does not know the secret).
absl::Status CheckChallenge(absl::string_view secret, absl::string_view hello, absl::string_view challenge);

std::string MakeProof(absl::string_view secret, absl::string_view hello, absl::string_view challenge);
// Errors: kPermissionDenied (the connecting rank does not know the secret).
absl::Status CheckProof(absl::string_view secret, absl::string_view hello, absl::string_view challenge,
                        absl::string_view proof);

}  // namespace retort

#include "model/comm/handshake.h"

#include <gtest/gtest.h>

namespace retort {
namespace {

const std::string kSecret(kSecretBytes, 's');

TEST(HandshakeTest, HelloComesThroughAndNothingElseIsOne) {
  const std::string bytes = EncodeHello({7, 3, 0x123456789abcdef0}, RandomNonce());
  ASSERT_EQ(bytes.size(), kHelloBytes);
  const auto hello = DecodeHello(bytes);
  ASSERT_TRUE(hello.ok());
  EXPECT_EQ(hello->from_rank, 7u);
  EXPECT_EQ(hello->to_rank, 3u);
  EXPECT_EQ(hello->generation, 0x123456789abcdef0u);
  EXPECT_FALSE(DecodeHello("GET / HTTP/1.1\r\n").ok());
  EXPECT_FALSE(DecodeHello(std::string(kHelloBytes, '\0')).ok());
}

TEST(HandshakeTest, BothSidesProveThatTheyKnowTheSecret) {
  const std::string hello = EncodeHello({1, 0, 5}, RandomNonce());
  const std::string challenge = MakeChallenge(kSecret, hello, RandomNonce());
  EXPECT_TRUE(CheckChallenge(kSecret, hello, challenge).ok());
  const std::string proof = MakeProof(kSecret, hello, challenge);
  EXPECT_TRUE(CheckProof(kSecret, hello, challenge, proof).ok());

  const std::string other(kSecretBytes, 't');
  EXPECT_FALSE(CheckChallenge(other, hello, challenge).ok());
  EXPECT_FALSE(CheckProof(other, hello, challenge, proof).ok());
  // Neither side's code serves as the other's, nor for another generation or nonce.
  EXPECT_FALSE(CheckProof(kSecret, hello, challenge, challenge.substr(kNonceBytes)).ok());
  EXPECT_FALSE(CheckProof(kSecret, EncodeHello({1, 0, 6}, hello.substr(20)), challenge, proof).ok());
  EXPECT_FALSE(CheckProof(kSecret, hello, MakeChallenge(kSecret, hello, RandomNonce()), proof).ok());
  EXPECT_FALSE(CheckProof(kSecret, hello, challenge, "").ok());
}

}  // namespace
}  // namespace retort

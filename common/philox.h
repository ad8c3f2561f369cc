// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): random numbers as
// a pure function of (key, counter).
//
// A stream has no state to save: who knows key and position draws the same number, in any order, on any machine.
#pragma once

#include <array>
#include <cstdint>

namespace retort {

using PhiloxBlock = std::array<uint32_t, 4>;

// Ten rounds over `counter` under `key`; word 0 is the lowest.
inline PhiloxBlock Philox4x32(PhiloxBlock counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

// The block at `position` of the sub-stream `stream` of `key`: 128 random bits.
inline PhiloxBlock PhiloxAt(uint64_t key, uint64_t position, uint64_t stream = 0) {
  return Philox4x32({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                     static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                    {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
}

// 53 random bits of a block as a number in [0, 1). `half` 0 uses words 0 and 1, `half` 1 words 2 and 3.
inline double UniformFromPhilox(const PhiloxBlock& block, int half = 0) {
  const uint64_t bits = (uint64_t{block[2 * half + 1]} << 32) | block[2 * half];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

// 24 random bits of one word as a number in [0, 1).
inline float UniformFromWord(uint32_t word) { return static_cast<float>(word >> 8) * 0x1.0p-24F; }

}  // namespace retort

#include "model/training/dropout.h"

#include <ATen/ATen.h>

#include <array>

#include "common/philox.h"
#include "model/parallel_for.h"

namespace retort {
namespace {

constexpr int64_t kSliceElements = int64_t{1} << 18;

constexpr int64_t kWord = 0xFFFFFFFF;

// The high and low 32 bits of word * factor. The 64-bit product wraps as two's complement, which leaves its bits right.
std::pair<at::Tensor, at::Tensor> Multiply(const at::Tensor& word, uint32_t factor) {
  const at::Tensor product = word * static_cast<int64_t>(factor);
  return {product.__rshift__(32).bitwise_and(kWord), product.bitwise_and(kWord)};
}

// Philox4x32 of common/philox.h in 64-bit integer tensors, for devices that only ATen reaches.
at::Tensor PhiloxWords(uint64_t key, uint64_t stream, int64_t blocks, c10::Device device) {
  const at::Tensor positions = at::arange(blocks, at::TensorOptions().dtype(at::kLong).device(device));
  std::array<at::Tensor, 4> counter = {positions.bitwise_and(kWord), positions.__rshift__(32),
                                       at::full_like(positions, static_cast<int64_t>(stream & kWord)),
                                       at::full_like(positions, static_cast<int64_t>(stream >> 32))};
  std::array<uint32_t, 2> round_key = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    auto [high0, low0] = Multiply(counter[0], 0xD2511F53);
    auto [high1, low1] = Multiply(counter[2], 0xCD9E8D57);
    counter = {high1.bitwise_xor(counter[1]).bitwise_xor(static_cast<int64_t>(round_key[0])), low1,
               high0.bitwise_xor(counter[3]).bitwise_xor(static_cast<int64_t>(round_key[1])), low0};
    round_key[0] += 0x9E3779B9;
    round_key[1] += 0xBB67AE85;
  }
  return at::stack({counter[0], counter[1], counter[2], counter[3]}, 1).view({-1});
}

// A word keeps its element when its 24 high bits reach this.
uint32_t Threshold(double p) { return static_cast<uint32_t>(p * (1 << 24)); }
float Kept(double p) { return static_cast<float>(1.0 / (1.0 - p)); }

}  // namespace

void FillDropoutMask(uint64_t key, uint64_t stream, double p, int64_t begin, int64_t count, float* out) {
  const uint32_t threshold = Threshold(p);
  const float kept = Kept(p);
  int64_t written = 0;
  while (written < count) {
    const int64_t element = begin + written;
    const PhiloxBlock words = PhiloxAt(key, static_cast<uint64_t>(element / 4), stream);
    for (int64_t i = element % 4; i < 4 && written < count; ++i)
      out[written++] = (words[i] >> 8) >= threshold ? kept : 0.0F;
  }
}

at::Tensor DropoutMask(uint64_t key, uint64_t stream, double p, int64_t rows, int64_t columns, c10::Device device) {
  const int64_t numel = rows * columns;
  if (device.is_cpu()) {
    at::Tensor mask = at::empty({rows, columns}, at::kFloat);
    float* out = mask.mutable_data_ptr<float>();
    // Slices of a size that pays for its thread.
    ParallelFor(rows, std::max<int64_t>(1, kSliceElements / std::max<int64_t>(1, columns)),
                [&](int64_t begin, int64_t end) {
                  FillDropoutMask(key, stream, p, begin * columns, (end - begin) * columns, out + begin * columns);
                });
    return mask;
  }
  const at::Tensor words = PhiloxWords(key, stream, (numel + 3) / 4, device).narrow(0, 0, numel);
  return words.__rshift__(8).ge(static_cast<int64_t>(Threshold(p))).to(at::kFloat).mul_(Kept(p)).view({rows, columns});
}

}  // namespace retort

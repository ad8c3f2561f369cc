// Portable C++ that the compiler vectorises as it can.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "model/generation/cpu_kernels.h"

namespace retort::internal {
namespace {

struct Vec {
  float lane[8];
};

template <typename F>
inline Vec Map(F f) {
  Vec out;
  for (int i = 0; i < 8; ++i) out.lane[i] = f(i);
  return out;
}

inline Vec Load(const float* p) {
  return Map([&](int i) { return p[i]; });
}
inline void Store(float* p, const Vec& v) {
  for (int i = 0; i < 8; ++i) p[i] = v.lane[i];
}
inline Vec Broadcast(float x) {
  return Map([&](int) { return x; });
}
inline Vec MultiplyAdd(const Vec& a, const Vec& b, const Vec& c) {
  return Map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline Vec Add(const Vec& a, const Vec& b) {
  return Map([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec Multiply(const Vec& a, const Vec& b) {
  return Map([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec Divide(const Vec& a, const Vec& b) {
  return Map([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec Max(const Vec& a, const Vec& b) {
  return Map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec Min(const Vec& a, const Vec& b) {
  return Map([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec Round(const Vec& a) {
  return Map([&](int i) { return std::nearbyint(a.lane[i]); });
}
inline Vec Exp2Int(const Vec& n) {
  return Map([&](int i) { return std::bit_cast<float>((static_cast<int32_t>(n.lane[i]) + 127) << 23); });
}
inline Vec WidenLow(const uint16_t* p) {
  return Map([&](int i) { return std::bit_cast<float>(uint32_t{p[2 * i]} << 16); });
}
inline Vec WidenHigh(const uint16_t* p) {
  return Map([&](int i) { return std::bit_cast<float>(uint32_t{p[2 * i + 1]} << 16); });
}

#include "model/generation/cpu_kernels.inc"

}  // namespace

extern const CpuKernels kGenericKernels = MakeKernels("generic");

const CpuKernels& ChooseCpuKernels() {
  const char* wanted = std::getenv("RETORT_CPU_KERNELS");
  if (wanted != nullptr && std::string(wanted) == "generic") return kGenericKernels;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2Kernels;
#endif
  return kGenericKernels;
}

}  // namespace retort::internal

// The inner loops of generation on the CPU, compiled once for each instruction set and chosen when the process runs.
//
// A matrix is stored as panels: 16 output features side by side, [in_features][16] (PackedMatrix). Each output element
// is one chain of multiply-adds over in_features in ascending order, whatever the number of rows, threads or panels a
// call covers: a row's result has the same bits alone, in a batch, in a prefill and in a resumed prefill. The
// instruction set is part of what makes the bits.
#pragma once

#include <cstdint>

namespace retort::internal {

inline constexpr int64_t kPanelWidth = 16;   // output features of a panel
inline constexpr int64_t kGroupPanels = 2;   // panels that one call computes
inline constexpr int64_t kMaxTileRows = 96;  // rows that one call computes

inline constexpr int64_t RoundUpToPanel(int64_t n) { return (n + kPanelWidth - 1) / kPanelWidth * kPanelWidth; }

struct CpuKernels {
  const char* instruction_set;

  // tile[panel][row][16] = a x panels, for `rows` <= kMaxTileRows rows and `panels` <= kGroupPanels consecutive panels.
  // `a`: [rows, lda], 4 bytes aligned. `b`: the first panel; the next one is `panel_stride` elements on. `tile` is 32
  // bytes aligned; its panels are `tile_stride` floats apart.
  void (*multiply_f32)(const float* a, int64_t lda, int64_t rows, const float* b, int64_t panel_stride, int64_t panels,
                       int64_t k, float* tile, int64_t tile_stride);
  // The same with bf16 panels: the 16 features of one input are 8 words, word i holding feature i in its low half and
  // feature i + 8 in its high half.
  void (*multiply_bf16)(const float* a, int64_t lda, int64_t rows, const uint16_t* b, int64_t panel_stride,
                        int64_t panels, int64_t k, float* tile, int64_t tile_stride);

  // What becomes of a tile's panel. `n` is a multiple of 16 wide in memory on every side.
  // c[row][0..16) = tile[row] (+ bias[0..16) where bias is not null)
  void (*store_tile)(const float* tile, int64_t rows, const float* bias, float* c, int64_t ldc);
  // c[row][0..16) += tile[row] (+ bias)
  void (*add_tile)(const float* tile, int64_t rows, const float* bias, float* c, int64_t ldc);
  // c[row][0..16) = silu(gate[row] + gate_bias) * (up[row] + up_bias)
  void (*silu_tile)(const float* gate, const float* up, int64_t rows, const float* gate_bias, const float* up_bias,
                    float* c, int64_t ldc);

  // out = x / rms(x) * weight over `n` features; both padded with zeros to a multiple of 16.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, double epsilon, float* out);
  // Replaces `scores`[0, n) by exp(score - max) and [n, padded) by zeros; returns 1 / sum. `padded` is a multiple
  // of 16.
  float (*exponentiate)(float* scores, int64_t n, int64_t padded);
};

// The best that this processor runs. RETORT_CPU_KERNELS=generic in the environment takes the portable ones.
const CpuKernels& ChooseCpuKernels();

extern const CpuKernels kGenericKernels;
#if defined(__x86_64__)
extern const CpuKernels kAvx2Kernels;
#endif

}  // namespace retort::internal

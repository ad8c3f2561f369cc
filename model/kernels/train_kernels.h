// The inner loops of training on the CPU in f32, compiled once for each instruction set and chosen when the process
// runs.
//
// Matrices are row-major with a leading dimension in elements. Results are written 16 columns ("a panel") at a time:
// the rows of `c` must have room for whole panels. Every output element is one chain of multiply-adds in ascending k,
// whatever the number of rows or threads. The instruction set is part of what makes the bits.
#pragma once

#include <cstdint>

namespace retort::internal {

struct TrainKernels {
  // c[rows][16 * panels] (+)= a[rows][k] b, with b packed (PackedMatrix): panel p is [k][16] at b + p * panel_stride.
  void (*multiply_f32)(const float* a, int64_t lda, int64_t rows, const float* b, int64_t panel_stride, int64_t panels,
                       int64_t k, float* c, int64_t ldc, bool accumulate);
  // The same with bf16 panels in PackedMatrix's order of words.
  void (*multiply_bf16)(const float* a, int64_t lda, int64_t rows, const uint16_t* b, int64_t panel_stride,
                        int64_t panels, int64_t k, float* c, int64_t ldc, bool accumulate);
  // The same with b[k][16 * panels] row-major.
  void (*multiply_rows)(const float* a, int64_t lda, int64_t rows, const float* b, int64_t ldb, int64_t panels,
                        int64_t k, float* c, int64_t ldc, bool accumulate);
  // c[rows][16 * panels] (+)= transpose(a[k][rows]) b[k][16 * panels], both row-major.
  void (*multiply_transposed)(const float* a, int64_t lda, int64_t rows, const float* b, int64_t ldb, int64_t panels,
                              int64_t k, float* c, int64_t ldc, bool accumulate);

  // One row of `n` features, a multiple of 16 in memory with zeros behind `width`. out = x / rms(x) * weight.
  void (*rms_norm)(const float* x, const float* weight, int64_t n, int64_t width, double epsilon, float* out);
  // out = residual + d(loss)/dx of rms_norm, given dy. `out` may be `residual`.
  void (*rms_norm_backward)(const float* dy, const float* x, const float* weight, const float* residual, int64_t n,
                            int64_t width, double epsilon, float* out);

  // out = silu(gate) * up over n elements, a multiple of 16.
  void (*swiglu)(const float* gate, const float* up, int64_t n, float* out);
  // Given d(loss)/d(out): writes out again and the gradients of gate and up. `out` may be `dout`.
  void (*swiglu_backward)(const float* dout, const float* gate, const float* up, int64_t n, float* dgate, float* dup,
                          float* out);

  // Rotates pairs (i, i + half) of a head in place by cos[half] and sign * sin[half].
  void (*rotate)(float* head, const float* cos, const float* sin, float sign, int64_t half);

  // scores[0, n) become softmax(scale * scores), scores[n, padded) zeros. `statistics` receives the largest score and
  // the inverse of the sum of exponentials relative to it.
  void (*softmax)(float* scores, int64_t n, int64_t padded, float scale, float* statistics);
  // The same bits again, from the statistics.
  void (*softmax_again)(float* scores, int64_t n, int64_t padded, float scale, const float* statistics);
  // d_weights[0, padded) become weights * (d_weights - along) * scale.
  void (*softmax_backward)(float* d_weights, const float* weights, int64_t padded, float along, float scale);

  float (*maximum)(const float* x, int64_t n);  // n at least 1
  // x[0, n) become exp(x - shift); returns their sum.
  float (*exponentiate_sum)(float* x, int64_t n, float shift);
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*scale)(float* x, int64_t n, float factor);
  void (*add)(float* x, const float* y, int64_t n);  // x += y
};

// The best that this processor runs.
const TrainKernels& ChooseTrainKernels();

extern const TrainKernels kGenericTrainKernels;
#if defined(__x86_64__)
extern const TrainKernels kAvx2TrainKernels;
#endif

}  // namespace retort::internal

/* The C interface of libretort_attention.so: causal attention over packed samples by cuDNN's graphs, which it opens and
   does not link. Pointers are device memory of the caller's current device; work is queued on `stream`. Any thread may
   call; calls take turns. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { RETORT_ATTENTION_BF16 = 0, RETORT_ATTENTION_F16 = 1 };

/* Unsupported: nothing was queued, another implementation has to do it. Failed: what was queued is of no use. For both
   `message` says which step refused and in cuDNN's words why. */
enum { RETORT_ATTENTION_DONE = 0, RETORT_ATTENTION_UNSUPPORTED = 1, RETORT_ATTENTION_FAILED = 2 };

/* [tokens, heads or kv_heads, dim] with strides {token_stride, dim, 1} in elements: columns of a wider matrix, say. */
typedef struct {
  void* data;
  int64_t token_stride;
} RetortAttentionView;

typedef struct {
  int device;
  void* stream; /* a cudaStream_t */
  void* context;
  /* Device memory that no other stream writes before what is queued now has run; null: there is none. */
  void* (*allocate)(void* context, size_t bytes);
  void (*log)(void* context, const char* line);
} RetortAttentionCaller;

typedef struct {
  int type;
  int64_t heads, kv_heads, dim;
  int64_t samples;
  const int64_t* offsets;    /* host [samples + 1]: of the samples' first tokens */
  const int32_t* cumulative; /* device: the same */
  double scale;
  int64_t window; /* the last tokens that a token sees, itself included; 0: all */
  int deterministic;
} RetortAttentionBatch;

typedef struct {
  RetortAttentionView q, k, v, out;
  /* f32, one for each row and head: the natural logarithm of the row's sum of exponentials. [samples, heads, length]
     where `by_sample` says so, else [tokens, heads]. */
  float* log_sum;
} RetortAttentionForward;

typedef struct {
  RetortAttentionView d_out, q, k, v, out, dq, dk, dv;
  const float* log_sum;
} RetortAttentionBackward;

typedef struct {
  int (*supports)(int device);
  int (*by_sample)(const RetortAttentionBatch* batch);
  int (*forward)(const RetortAttentionCaller* caller, const RetortAttentionBatch* batch,
                 const RetortAttentionForward* views);
  int (*backward)(const RetortAttentionCaller* caller, const RetortAttentionBatch* batch,
                  const RetortAttentionBackward* views);
  /* Of the thread's last call that was not done. */
  const char* (*message)(void);
} RetortAttentionFunctions;

/* The one exported symbol. */
const RetortAttentionFunctions* RetortAttentionPlugin(void);

#ifdef __cplusplus
}
#endif

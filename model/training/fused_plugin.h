/* The C interface of libretort_train.so, which holds the CUDA kernels of a training step (see fused_ops.h for what each
   computes). Pointers are device memory of `device`; work is queued on `stream` (a cudaStream_t). Functions return 0,
   or a CUDA error whose text `error_text` gives; they check no shapes. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { RETORT_TRAIN_F32 = 0, RETORT_TRAIN_BF16 = 1, RETORT_TRAIN_F16 = 2 };

/* How many f64 square_sum needs to put its parts into. */
enum { RETORT_TRAIN_PARTS = 1024 };
/* How many values a tile of flat_blocks has, and the sides that it may have: powers of two. */
enum { RETORT_TRAIN_TILE = 4096, RETORT_TRAIN_TILE_SIDE_MIN = 16, RETORT_TRAIN_TILE_SIDE_MAX = 256 };

/* Row i begins at data + i * stride values. */
typedef struct {
  void* data; /* null: there is none */
  int64_t stride;
} RetortTrainRows;

/* Rows of `inner` to an outer one: row i begins at data + (i / inner) * stride + (i % inner) * inner_stride values. */
typedef struct {
  void* data; /* null: there is none */
  int64_t stride;
  int64_t inner_stride;
} RetortTrainNestedRows;

typedef struct {
  float decay; /* 1 - learning rate * weight decay */
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float bias_correction2_sqrt;
  float epsilon;
  float negative_step_size; /* - learning rate / bias correction 1 */
  double max_norm;          /* 0: no clipping */
} RetortTrainAdamW;

typedef struct {
  int64_t first, last; /* elements [first, last) */
} RetortTrainRange;

typedef struct {
  void* matrix; /* [rows, columns], or [columns, rows] where `transposed` */
  int64_t stride;
  int64_t offset; /* in the flat buffer */
  int64_t rows, columns;
  int64_t first_tile;
  int32_t tile_rows, tile_columns; /* of the flat block; their product is RETORT_TRAIN_TILE */
  int32_t type;
  int32_t transposed;
  float scale;
} RetortTrainBlock;

typedef struct {
  /* 0 where the library holds code for the device. */
  int (*supports)(int device);
  int (*rms_norm)(int device, int type, int64_t rows, int64_t inner, int64_t width, const RetortTrainNestedRows* x,
                  const void* weight, float eps, const RetortTrainNestedRows* y, void* stream);
  int (*rms_norm_backward)(int device, int type, int64_t rows, int64_t inner, int64_t width,
                           const RetortTrainNestedRows* grad, const RetortTrainNestedRows* x, const void* weight,
                           float eps, const RetortTrainNestedRows* residual, const RetortTrainNestedRows* dx,
                           void* stream);
  /* `half` values of a head are paired with the next `half`. */
  int (*rotate)(int device, int type, int64_t tokens, int64_t heads, int64_t head_dim, int64_t half,
                const RetortTrainRows* x, const RetortTrainRows* cosines, const RetortTrainRows* sines, int inverse,
                void* stream);
  int (*swiglu)(int device, int type, int64_t rows, int64_t width, const RetortTrainRows* gate_up,
                const RetortTrainRows* y, void* stream);
  int (*swiglu_backward)(int device, int type, int64_t rows, int64_t width, const RetortTrainRows* grad,
                         const RetortTrainRows* gate_up, const RetortTrainRows* y, void* stream);
  int (*cross_entropy)(int device, int type, int64_t rows, int64_t vocabulary, const RetortTrainRows* logits,
                       const int64_t* targets, float scale, int gradient, float* losses, void* stream);
  /* parts: [RETORT_TRAIN_PARTS] */
  int (*square_sum)(int device, const float* x, int64_t count, double* parts, double* out, void* stream);
  /* `undecayed`, on the host: ascending, disjoint, none empty. */
  int (*adamw)(int device, const RetortTrainAdamW* step, const double* square_sum, const RetortTrainRange* undecayed,
               int64_t undecayed_count, int64_t count, const float* gradient, float* parameters, float* exp_avg,
               float* exp_avg_sq, void* stream);
  /* `blocks` and `block_of_tile` [tiles] on the device. */
  int (*flat_blocks)(int device, const float* flat, const RetortTrainBlock* blocks, const int32_t* block_of_tile,
                     int64_t tiles, void* stream);
  const char* (*error_text)(int error);
} RetortTrainFunctions;

/* The one exported symbol. */
const RetortTrainFunctions* RetortTrainPlugin(void);

#ifdef __cplusplus
}
#endif

/* The C interface of libretort_quant.so, which alone holds CUDA kernels and links the CUDA runtime. Pointers are device
   memory of the current device; work is queued on `stream` (a cudaStream_t). Functions return 0, or a CUDA error whose
   text `error_text` gives. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { RETORT_QUANT_F32 = 0, RETORT_QUANT_BF16 = 1, RETORT_QUANT_F16 = 2 };

typedef struct {
  const uint8_t* codes;         /* two values a byte, the first in the high half */
  const void* scales;           /* float, or uint8_t where nested_scales is set */
  const float* nested_scales;   /* null: scales are as they are */
  const float* nested_codebook; /* [256] */
  float nested_offset;
  int64_t nested_block;
  int64_t block;
  int64_t count; /* of values */
  float table[16];
} RetortQuant4Bit;

typedef struct {
  /* Whether the library holds code for the device. */
  int (*supports)(int device);
  int (*dequantise_4bit)(int device, const RetortQuant4Bit* matrix, void* out, int out_type, void* stream);
  int (*dequantise_int8)(int device, const int8_t* codes, const float* scales, int64_t rows, int64_t columns, void* out,
                         int out_type, void* stream);
  /* `bounds` [15] between the values in ascending order, `ordered` [16] the codes in that order. */
  int (*quantise_4bit)(int device, const void* values, int type, int64_t count, int64_t block, const float* bounds,
                       const uint8_t* ordered, uint8_t* codes, float* scales, void* stream);
  int (*quantise_int8)(int device, const void* half_values, int64_t rows, int64_t columns, int8_t* codes, float* scales,
                       void* stream);
  const char* (*error_text)(int error);
} RetortQuantFunctions;

/* The one exported symbol. */
const RetortQuantFunctions* RetortQuantPlugin(void);

#ifdef __cplusplus
}
#endif

/* The C interface of libretort_nccl.so, which alone links NCCL and the CUDA runtime. It takes no types of ours, so that
   the library and the program share nothing but these functions.

   Every function that can fail returns 0, or one of the codes below with a message in `error`. One thread uses a
   communicator at a time. After a failure only Close may be called. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  RETORT_NCCL_OK = 0,
  RETORT_NCCL_PEER = 1,    /* a peer failed, or `cancelled` said so */
  RETORT_NCCL_TIMEOUT = 2, /* no progress for timeout_ms */
  RETORT_NCCL_INTERNAL = 3 /* NCCL's or CUDA's message */
};

enum { RETORT_NCCL_ID_BYTES = 128 };

typedef struct {
  int rank;
  int size;
  int device_index;
  int64_t timeout_ms;
  int (*cancelled)(void* context); /* asked often while waiting; not 0: give up */
  void* context;
  char id[RETORT_NCCL_ID_BYTES]; /* of RetortNcclNewId, the same for all ranks */
} RetortNcclOptions;

typedef struct RetortNccl RetortNccl;

typedef struct {
  int (*new_id)(char* id, char* error, size_t error_size);
  int (*open)(const RetortNcclOptions* options, RetortNccl** opened, char* error, size_t error_size);
  /* Sends send[j] (send_bytes[j], device memory) to rank j and fills receive[j] from it; waits for work queued on the
     device before, and until the transfer is done. The own entries are copied. */
  int (*exchange)(RetortNccl* nccl, const void* const* send, const size_t* send_bytes, void* const* receive,
                  const size_t* receive_bytes, char* error, size_t error_size);
  int (*all_reduce_sum)(RetortNccl* nccl, float* values, size_t count, char* error, size_t error_size);
  void (*close)(RetortNccl* nccl);
} RetortNcclFunctions;

/* The one exported symbol. */
const RetortNcclFunctions* RetortNcclPlugin(void);

#ifdef __cplusplus
}
#endif

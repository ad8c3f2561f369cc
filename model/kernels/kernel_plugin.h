// What the users of plug-in libraries of CUDA kernels share.
#pragma once

#include <c10/core/Device.h>

namespace retort {

// What `symbol`, a function without arguments, of `library` returns; null, and logged as `<what>_kernels_absent`, where
// the library is not there.
const void* LoadKernelTable(const char* library, const char* symbol, const char* what);

template <typename Functions>
const Functions* LoadKernels(const char* library, const char* symbol, const char* what) {
  return static_cast<const Functions*>(LoadKernelTable(library, symbol, what));
}

// The current stream of a GPU, a cudaStream_t.
void* StreamOf(c10::Device device);

}  // namespace retort

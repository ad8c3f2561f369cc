// The language-model head and its cross-entropy on the CPU training path.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "absl/status/statusor.h"
#include "model/generation/packed_matrix.h"
#include "model/generation/thread_pool.h"
#include "model/kernels/train_kernels.h"
#include "model/training/cpu_buffers.h"

namespace retort::internal {

// Goes over the vocabulary once, a slice at a time: a slice's probabilities, relative to the largest logit so far, are
// multiplied into the gradient while they are in the cache, and the gradient is rescaled when a larger logit comes.
// Logits of more than a slice never exist.
class CpuHead {
 public:
  // `weight` [vocab, hidden], f32, contiguous; kept.
  static absl::StatusOr<CpuHead> Create(const at::Tensor& weight, ThreadPool& pool);

  static constexpr int64_t kSlice = 256;

  // loss[i] = -ln p(targets[i]). Unless `gradient` has no data it receives grad_scale * d(loss)/d(hidden). `logits`
  // holds `rows` rows of kSlice. May run on several threads for different rows.
  void Run(MatrixView hidden, int64_t rows, const int64_t* targets, float grad_scale, MatrixView logits,
           MatrixView gradient, double* loss) const;

 private:
  const TrainKernels* kernels_ = nullptr;
  at::Tensor weight_;
  PackedMatrix forward_;   // [vocab, hidden]
  PackedMatrix backward_;  // [hidden, vocab]
};

}  // namespace retort::internal

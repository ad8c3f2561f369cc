// Linear modules that read the same input, with their LoRA adapters, on blocks of rows: the CPU training path.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "model/generation/packed_matrix.h"
#include "model/generation/thread_pool.h"
#include "model/kernels/train_kernels.h"
#include "model/training/cpu_buffers.h"
#include "model/training/flat_adapter.h"

namespace retort::internal {

// c[rows][...] (+)= a times a packed matrix's inputs [first_input, first_input + k).
void MultiplyPacked(const TrainKernels& kernels, MatrixView a, int64_t rows, const PackedMatrix& matrix,
                    int64_t first_panel, int64_t panels, int64_t first_input, int64_t k, MatrixView c, bool accumulate);

// LoRA dropout of one micro-batch.
struct CpuDropout {
  uint64_t key = 0;
  double p = 0.0;
};

struct LinearSource {
  at::Tensor weight;  // [out_features, in_features], f32
  at::Tensor bias;    // or undefined
  const AdapterSlot* slot = nullptr;
};

// The outputs of several modules lie side by side, each padded to whole panels. Frozen weights are packed once in both
// orientations. All methods but PackAdapter are const and may run on several threads for different rows.
class CpuLinear {
 public:
  static absl::StatusOr<CpuLinear> Create(const std::vector<LinearSource>& sources, int64_t rank, double scaling,
                                          ThreadPool& pool);

  int64_t in_features() const { return in_features_; }
  int64_t out_width() const { return out_width_; }  // padded
  int64_t offset(int part) const { return parts_[part].offset; }
  int64_t low_width() const { return low_width_; }  // of A x, over the adapted parts; 0 without an adapter

  // Takes over the adapter as it stands in `flat`.
  void PackAdapter(const float* flat);

  // y = W x + b + scaling B A dropout(x), low = A dropout(x). `first_row` is where the rows lie in the micro-batch;
  // `scratch` holds as many rows of in_features.
  void Forward(MatrixView x, int64_t first_row, int64_t rows, const CpuDropout& dropout, MatrixView scratch,
               MatrixView y, MatrixView low) const;
  // d_low = scaling B^T dy; dx = W^T dy + A^T d_low unless dx has no data.
  void Backward(MatrixView dy, int64_t first_row, int64_t rows, const CpuDropout& dropout, MatrixView scratch,
                MatrixView d_low, MatrixView dx) const;

  // The gradients of A and B, cut into tasks that may run on any thread.
  struct GradientInputs {
    MatrixView x, dy, low, d_low;  // of the whole micro-batch
    int64_t tokens = 0;
  };
  int64_t gradient_tasks() const { return static_cast<int64_t>(tasks_.size()); }
  // `scratch` holds r + kGradientRows rows of 16 * kGradientPanels. Writes its part of `flat_gradient`.
  void Gradient(int64_t task, const GradientInputs& inputs, const CpuDropout& dropout, MatrixView scratch,
                float* flat_gradient) const;

  static constexpr int64_t kGradientPanels = 16;
  static constexpr int64_t kGradientRows = 64;

 private:
  struct Part {
    int64_t out_features = 0;
    int64_t offset = 0;  // of its outputs, in columns
    std::optional<AdapterSlot> slot;
    int64_t low_offset = 0;                              // of A x, in columns
    int64_t a_down = 0, b_up = 0, b_down = 0, a_up = 0;  // where its packed adapter lies in adapter_
  };
  struct Task {
    int part = 0;
    bool of_b = false;
    int64_t first_panel = 0;
    int64_t panels = 0;
  };

  void Low(const Part& part, MatrixView x, int64_t first_row, int64_t rows, const CpuDropout& dropout,
           MatrixView scratch, MatrixView low) const;
  float* adapter() const { return static_cast<float*>(adapter_.data()); }

  const TrainKernels* kernels_ = nullptr;
  int64_t in_features_ = 0;
  int64_t out_width_ = 0;
  int64_t low_width_ = 0;
  int64_t rank_ = 0;
  double scaling_ = 0.0;
  std::vector<Part> parts_;
  std::vector<Task> tasks_;
  std::vector<float> bias_;  // [out_width] or empty
  PackedMatrix forward_;     // [out_width, in_features]
  PackedMatrix backward_;    // [in_features, out_width]
  PageBuffer adapter_;
};

}  // namespace retort::internal

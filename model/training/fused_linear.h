// Frozen linear modules that share an input, with their adapters folded into one operand, so that LoRA costs no pass of
// its own over what the modules put out or take in:
//
//   operand = [ W  sB  b ]   [out + low, in + low]     y   = [x, x A^T, 1] [W, sB, b]^T
//             [ A   0  0 ]                             dx  = [dy, dy sB] [W; A]
//
// with W, sB and A of the modules below (beside) one another. Matrices that a product reads so are Wide: they have
// `low` columns more than their own.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/training/flat_adapter.h"
#include "model/training/fused_ops.h"
#include "model/weights.h"

namespace retort::internal {

// [tokens, width + low]: `main` is the first `width` columns of `all`.
struct Wide {
  at::Tensor all, main;
};

class FusedLinear {
 public:
  struct Module {
    Linear base;
    const AdapterSlot* slot = nullptr;  // null: not adapted
  };
  // Copies the modules' weights of `dtype`, none quantised; all have `in_features` inputs. A and B are zero until
  // `Blocks` are written.
  FusedLinear(const std::vector<Module>& modules, int64_t in_features, c10::ScalarType dtype, c10::Device device);

  int64_t in_features() const { return in_; }
  int64_t out_features() const { return out_; }
  int64_t low() const { return low_; }

  // Those of the adapted modules, in their order.
  std::vector<const AdapterSlot*> slots() const;

  // Where the modules' A and B go when an optimizer has changed them.
  void AppendBlocks(std::vector<FlatBlock>& blocks) const;

  // What Forward wants for x, BackwardInput for dy: columns beside `main` are what they must be. Uninitialised
  // otherwise.
  Wide MakeInput(int64_t tokens) const;
  Wide MakeOutputGradient(int64_t tokens) const;

  // Dropout masks [tokens, in], f32, one for each of `slots`; empty where there is no dropout.
  using Masks = std::vector<at::Tensor>;

  // y [tokens, out] from x.main. Returns x A^T [tokens, ranks], which BackwardAdapters wants.
  at::Tensor Forward(const Wide& x, const Masks& masks, at::Tensor& y) const;

  // dx [tokens, in] from dy.main, unless it is undefined. Returns dy sB [tokens, ranks], which BackwardAdapters wants.
  at::Tensor BackwardInput(const Wide& dy, const Masks& masks, at::Tensor& dx) const;
  // The adapters' gradients into `gradient`, which is laid out as `adapter`'s buffer. `dy` [tokens, out]; `x`:
  // Forward's x.main; `low`: what Forward returned, `d_low`: what BackwardInput did.
  void BackwardAdapters(const at::Tensor& dy, const at::Tensor& d_low, const at::Tensor& x, const at::Tensor& low,
                        const Masks& masks, const FlatAdapter& adapter, at::Tensor& gradient) const;

 private:
  struct Part {
    const AdapterSlot* slot = nullptr;
    int64_t row = 0;    // its first of `out` rows
    int64_t first = 0;  // its first of `ranks` columns
    int64_t rank = 0;
  };
  at::Tensor Weight() const { return operand_.narrow(0, 0, out_); }  // with its low columns
  at::Tensor A(const Part& part) const;                              // [rank, in]
  at::Tensor B(const Part& part) const;                              // [rows, rank], scaled

  int64_t in_ = 0, out_ = 0, ranks_ = 0, low_ = 0;
  bool biased_ = false;
  std::vector<Part> parts_;
  at::Tensor operand_;
};

}  // namespace retort::internal

#include "models/positions.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "attention/tiles/tile_ops.h"

namespace ringmaster::models {
namespace {

constexpr double kXposScaleBase = 512;
constexpr double kXposGamma = 0.4;
constexpr int64_t kTokensPerTask = 256;

// Whether a kernel of ours turns it, in an eighth of what the operations below read and write.
bool HasKernel(const at::Tensor& x) {
  return x.is_cuda() && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf) &&
         attention::WhyNoTileKernels(x).empty();
}

at::Tensor Turn(const at::Tensor& input, const at::Tensor& cos, const at::Tensor& sin,
                double direction) {
  if (HasKernel(input)) {
    const at::Tensor rows = input.contiguous(), turned = at::empty_like(rows);
    attention::Rotate(rows, cos.contiguous(), sin.contiguous(), direction, turned);
    return turned;
  }
  const at::Tensor x = input.to(cos.scalar_type());
  at::Tensor out = at::empty_like(x, at::MemoryFormat::Contiguous);
  const int64_t half = x.size(-1) / 2;
  const at::Tensor x1 = x.narrow(-1, 0, half);
  const at::Tensor x2 = x.narrow(-1, half, half);
  at::Tensor out1 = out.narrow(-1, 0, half);
  at::Tensor out2 = out.narrow(-1, half, half);
  at::mul_out(out1, x1, cos);
  out1.addcmul_(x2, sin, -direction);
  at::mul_out(out2, x2, cos);
  out2.addcmul_(x1, sin, direction);
  return out.to(input.scalar_type());
}

// The transpose of a turn (scaled or not) is the turn back.
class RotateFunction : public torch::autograd::Function<RotateFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& cos, const at::Tensor& sin) {
    context->save_for_backward({cos, sin});
    return Turn(x, cos, sin, 1);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    return {Turn(gradients[0], saved[0], saved[1], -1), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

RotaryTables MakeRotaryTables(const LongNetConfig& config, absl::Span<const int64_t> positions,
                              const at::TensorOptions& options) {
  if (config.positions == Positions::kNone) {
    return {};
  }
  const bool xpos = config.positions == Positions::kXpos;
  const auto tokens = static_cast<int64_t>(positions.size());
  const int64_t half = config.head_dim() / 2;
  int64_t segment = 1;
  for (const attention::Branch& branch : config.attention.branches) {
    segment = std::max(segment, branch.segment_length);
  }
  const auto table = [&] { return at::empty({tokens, 1, half}, at::kDouble); };
  // Keys turn as queries do, but for XPOS.
  std::vector<at::Tensor> tables(xpos ? 4 : 2);
  std::generate(tables.begin(), tables.end(), table);
  double* values[4] = {};
  std::transform(tables.begin(), tables.end(), values,
                 [](const at::Tensor& t) { return t.mutable_data_ptr<double>(); });
  std::vector<double> frequencies(half);
  std::vector<double> zetas(half);
  for (int64_t m = 0; m < half; ++m) {
    const double share = static_cast<double>(m) / static_cast<double>(half);
    frequencies[m] = std::pow(10000.0, -share);
    zetas[m] = (share + kXposGamma) / (1 + kXposGamma);
  }
  // Every ring makes them anew while its peers wait.
  at::parallel_for(0, tokens, kTokensPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const double exponent =
          static_cast<double>(positions[token] % segment - segment / 2) / kXposScaleBase;
      for (int64_t m = 0; m < half; ++m) {
        const double angle = static_cast<double>(positions[token]) * frequencies[m];
        const double decay = xpos ? std::pow(zetas[m], exponent) : 1;
        const double cos = std::cos(angle);
        const double sin = std::sin(angle);
        const int64_t at = token * half + m;
        values[0][at] = cos * decay;
        values[1][at] = sin * decay;
        if (xpos) {
          values[2][at] = cos / decay;
          values[3][at] = sin / decay;
        }
      }
    }
  });
  const at::ScalarType dtype =
      at::typeMetaToScalarType(options.dtype()) == at::kDouble ? at::kDouble : at::kFloat;
  const auto place = [&](const at::Tensor& t) { return t.to(options.device(), dtype); };
  const at::Tensor cos = place(tables[0]), sin = place(tables[1]);
  return {cos, sin, xpos ? place(tables[2]) : cos, xpos ? place(tables[3]) : sin};
}

at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return cos.defined() ? RotateFunction::apply(x, cos, sin) : x;
}

}  // namespace ringmaster::models

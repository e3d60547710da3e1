#include "attention/attend.h"

#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

namespace ringmaster::attention {
namespace {

struct CallHolder : torch::CustomClassHolder {
  explicit CallHolder(Call given) : call(std::move(given)) {}
  const Call call;
};

class AttendFunction : public torch::autograd::Function<AttendFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& q, const at::Tensor& k,
                                                const at::Tensor& v,
                                                const std::optional<at::Tensor>& log_gates,
                                                Call call) {
    Saved saved;
    const AttentionOutput output = Forward(call, q, k, v, &saved, log_gates.value_or(at::Tensor()));
    context->mark_non_differentiable({output.lse});
    torch::autograd::variable_list tensors = {saved.q,   saved.k,    saved.v,
                                              saved.lse, saved.pool, saved.log_gates};
    tensors.insert(tensors.end(), saved.outs.begin(), saved.outs.end());
    context->save_for_backward(std::move(tensors));
    context->saved_data["call"] =
        c10::IValue::make_capsule(c10::make_intrusive<CallHolder>(std::move(call)));
    return {output.out, output.lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "attention has no second derivative: call backward without create_graph");
    const auto tensors = context->get_saved_variables();
    const Saved saved{tensors[0], tensors[1], tensors[2], {tensors.begin() + 6, tensors.end()},
                      tensors[3], tensors[4], tensors[5]};
    const auto holder = context->saved_data["call"].toCapsule();
    at::Tensor dlog_gates;
    const DenseGradients result =
        Backward(static_cast<const CallHolder&>(*holder).call, saved, gradients[0], &dlog_gates);
    return {result.dq, result.dk, result.dv, dlog_gates, at::Tensor()};
  }
};

}  // namespace

AttentionOutput Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Call call,
                       const at::Tensor& log_gates) {
  // An undefined tensor is not an argument for a function that takes tensors.
  const auto gates = log_gates.defined() ? std::make_optional(log_gates) : std::nullopt;
  const auto outputs = AttendFunction::apply(q, k, v, gates, std::move(call));
  return {outputs[0], outputs[1]};
}

}  // namespace ringmaster::attention

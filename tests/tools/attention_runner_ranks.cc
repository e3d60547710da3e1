#include "tests/tools/attention_runner_ranks.h"

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "attention/passes.h"
#include "tests/attention/device.h"
#include "worker/comm/in_process_exchange.h"

namespace ringmaster::tools {
namespace {

using attention::DilatedAttentionOptions;
using attention::GroupedExchange;
using attention::ShardMap;

constexpr int kMaxThreads = 1024;
// Up to here ranks without tokens are run like the others; beyond, they are left out: they take no
// part anyway.
constexpr int kMaxEmptyRanks = 64;

absl::StatusOr<ShardMap> MakeMap(int64_t tokens, int64_t ranks) {
  const ShardMap map = ShardMap::Contiguous(
      tokens, static_cast<int>(std::max<int64_t>(1, std::min(ranks, tokens + kMaxEmptyRanks))), 1);
  if (map.ranks() <= kMaxEmptyRanks) {
    return map;
  }
  std::vector<std::vector<attention::TokenRange>> held;
  for (int rank = 0; rank < map.ranks(); ++rank) {
    if (!map.Ranges(rank).empty()) {
      held.emplace_back(map.Ranges(rank).begin(), map.Ranges(rank).end());
    }
  }
  if (held.size() > kMaxThreads) {
    return absl::InvalidArgumentError(absl::StrCat("--ranks ", ranks, " needs ", held.size(),
                                                   " threads; the limit is ", kMaxThreads));
  }
  if (held.empty()) {
    return ShardMap::Contiguous(tokens, 1, 1);
  }
  return ShardMap::FromRanges(tokens, std::move(held));
}

struct RankResult {
  attention::AttentionOutput output;
  attention::DenseGradients gradients;
};

RankResult RunRank(const RunnerInput& input, const DilatedAttentionOptions& options,
                   at::Device device, const ShardMap& map, int rank, GroupedExchange* exchange) {
  const int64_t begin = map.Ranges(rank).empty() ? 0 : map.Ranges(rank)[0].begin;
  const auto local = [&](const at::Tensor& x) {
    return x.narrow(1, begin, map.LocalTokens(rank)).to(device);
  };
  const at::Tensor q = local(input.q), k = local(input.k), v = local(input.v);
  const attention::Call call = attention::MakeCall(q, k, v, options, map, exchange);
  attention::Saved saved;
  RankResult result{attention::Forward(call, q, k, v, &saved), {}};
  if (input.dout.defined()) {
    result.gradients = attention::Backward(call, saved, local(input.dout));
  }
  return result;
}

// One sentence for what a rank threw.
absl::Status Describe(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const attention::ExchangeError& exchange) {
    return exchange.status();
  } catch (const c10::Error& torch) {
    return absl::InternalError(torch.what_without_backtrace());
  } catch (const std::exception& other) {
    return absl::InternalError(other.what());
  }
}

at::Tensor Whole(const std::vector<RankResult>& results, at::Tensor (*part)(const RankResult&)) {
  std::vector<at::Tensor> parts;
  for (const RankResult& result : results) {
    parts.push_back(part(result).to(at::kCPU));
  }
  return at::cat(parts, 1).contiguous();
}

}  // namespace

absl::StatusOr<std::map<std::string, at::Tensor>> RunRanks(const RunnerInput& input,
                                                           const DilatedAttentionOptions& options,
                                                           at::Device device, int64_t ranks) {
  const auto map = MakeMap(input.q.size(1), ranks);
  if (!map.ok()) {
    return map.status();
  }
  const int size = map->ranks();
  std::vector<std::unique_ptr<worker::Communicator>> communicators;
  if (size > 1) {
    communicators = device.is_cpu() ? worker::ConnectInProcess(size)
                                    : worker::ConnectInProcess(size, absl::Seconds(30),
                                                               &attention::CopyDeviceBytes, 0);
  }
  std::vector<RankResult> results(size);
  std::vector<std::exception_ptr> errors(size);
  const int threads_per_rank = std::max(1, at::get_num_threads() / size);
  const auto run = [&](int rank) {
    GroupedExchange* exchange = size > 1 ? &communicators[rank]->world() : nullptr;
    try {
      at::set_num_threads(threads_per_rank);
      results[rank] = RunRank(input, options, device, *map, rank, exchange);
    } catch (...) {
      errors[rank] = std::current_exception();
      if (exchange != nullptr) {
        exchange->Abort(absl::StrCat("rank ", rank, " failed"));
      }
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 1; rank < size; ++rank) {
    threads.emplace_back(run, rank);
  }
  run(0);
  for (std::thread& thread : threads) {
    thread.join();
  }
  for (const std::exception_ptr& error : errors) {
    if (error != nullptr) {
      return Describe(error);
    }
  }
  std::map<std::string, at::Tensor> tensors;
  tensors["out"] = Whole(results, [](const RankResult& result) { return result.output.out; });
  tensors["lse"] = Whole(results, [](const RankResult& result) { return result.output.lse; });
  if (input.dout.defined()) {
    tensors["dq"] = Whole(results, [](const RankResult& result) { return result.gradients.dq; });
    tensors["dk"] = Whole(results, [](const RankResult& result) { return result.gradients.dk; });
    tensors["dv"] = Whole(results, [](const RankResult& result) { return result.gradients.dv; });
  }
  return tensors;
}

}  // namespace ringmaster::tools

#include "attention/plan/layout.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "attention/plan/traffic.h"
#include "base/human_bytes.h"
#include "base/status_macros.h"

namespace ringmaster::attention {
namespace {

constexpr double kMargin = 0.02;
// Of swapped heads: they wait for all of their exchange, while part of a grouped one passes under
// the branches that need none, which is not predicted.
constexpr double kHeadsMargin = 0.10;
constexpr int kMaxAligns = 3;
constexpr int kMaxSampledRanks = 8;
constexpr int kChunksOfDealt = 4;
// That a choice may cost: about a quarter of a second.
constexpr double kMaxLooks = 1 << 21;
// A look at a peer's keys takes as long as to pass by so many pairs of a mask.
constexpr double kPairsOfLook = 32;

bool IsCausal(const AttentionPattern& pattern) {
  return std::visit([](const auto& options) { return options.causal; }, pattern);
}

// No rank has an eighth more tokens than the mean.
bool IsEven(const ShardMap& map) {
  const int64_t even = map.tokens() / map.ranks();
  int64_t largest = 0;
  for (int rank = 0; rank < map.ranks(); ++rank) {
    largest = std::max(largest, map.LocalTokens(rank));
  }
  return largest - even <= even / 8 + 1;
}

// What borders of chunks may be multiples of, longest first; of any pattern 1.
std::vector<int64_t> Aligns(const AttentionPattern& pattern, int64_t most) {
  std::vector<int64_t> aligns;
  if (const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&pattern)) {
    aligns.push_back(blocks->mask.shape().block_size);
  } else {
    for (const Branch& branch : std::get<DilatedAttentionOptions>(pattern).branches) {
      aligns.push_back(branch.segment_length);
    }
  }
  std::sort(aligns.begin(), aligns.end(), std::greater<>());
  aligns.erase(std::unique(aligns.begin(), aligns.end()), aligns.end());
  aligns.erase(std::remove_if(aligns.begin(), aligns.end(),
                              [most](int64_t align) { return align > most || align == 1; }),
               aligns.end());
  return aligns;
}

using MakeMap = ShardMap (*)(int64_t tokens, int ranks, int64_t align);

void AddMaps(const RingCall& call, const std::string& name, MakeMap make, int chunks,
             std::vector<Layout>* layouts) {
  const auto add = [&](int64_t align, const std::string& full_name) {
    ShardMap map = make(call.tokens, call.ranks, align);
    const bool known = std::any_of(layouts->begin(), layouts->end(),
                                   [&](const Layout& layout) { return layout.map == map; });
    if (known || (align > 1 && !IsEven(map))) return false;
    layouts->push_back({std::move(map), Strategy::kGrouped, full_name});
    return true;
  };
  int added = 0;
  for (const int64_t align : Aligns(call.pattern, call.tokens / chunks)) {
    if (added == kMaxAligns) break;
    added += add(align, absl::StrCat(name, ", borders on multiples of ", align)) ? 1 : 0;
  }
  add(1, name);
}

LayoutCost CostOf(const RingCall& call, const RingRates& rates, const AttentionPlan& plan,
                  double looks) {
  MessageShape one = call.shape;
  one.batch = 1;
  double exchanged = 0, memory = 0;
  for (const int rank : SampleRanks(plan, kMaxSampledRanks, looks)) {
    const RankTraffic traffic = TrafficOf(plan, rank, one);
    exchanged =
        std::max({exchanged, traffic.sent_forward + traffic.sent_backward, traffic.received});
    memory = std::max(memory, traffic.saved + traffic.transient);
  }
  double most = 0, sum = 0;
  for (int rank = 0; rank < call.ranks; ++rank) {
    const double flops = plan.ForwardFlops(rank, one);
    most = std::max(most, flops);
    sum += flops;
  }
  const double exchange = exchanged / rates.bytes_per_second;
  const auto batch = static_cast<double>(call.shape.batch);
  return {
      .seconds = batch * ((1 + kBackwardOverForward) * most / rates.flops_per_second + exchange),
      .exchange_seconds = batch * exchange,
      .imbalance = sum > 0 ? most * call.ranks / sum : 1,
      .exchanged_bytes = batch * exchanged,
      .memory_bytes = batch * memory};
}

bool IsBetter(const Layout& layout, const Layout& best) {
  const double margin = layout.strategy == Strategy::kHeads ? kHeadsMargin : kMargin;
  return layout.cost.seconds < (1 - margin) * best.cost.seconds;
}

// Chunks go to the rank with the least work so far, heaviest first.
absl::StatusOr<ShardMap> Dealt(const RingCall& call, int64_t align) {
  const ShardMap chunks = ShardMap::Contiguous(call.tokens, call.ranks * kChunksOfDealt, align);
  ASSIGN_OR_RETURN(const AttentionPlan plan, PlanOf(call, {.map = chunks}));
  std::vector<double> work(chunks.ranks());
  for (int chunk = 0; chunk < chunks.ranks(); ++chunk) {
    work[chunk] = plan.ForwardFlops(chunk, {.head_dim = 1});
  }
  std::vector<int> order(chunks.ranks());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return work[a] > work[b]; });
  std::vector<double> load(call.ranks);
  std::vector<std::vector<int>> held(call.ranks);
  for (const int chunk : order) {
    int best = -1;
    for (int rank = 0; rank < call.ranks; ++rank) {
      if (held[rank].size() < kChunksOfDealt && (best < 0 || load[rank] < load[best])) best = rank;
    }
    load[best] += work[chunk];
    held[best].push_back(chunk);
  }
  for (std::vector<int>& chunks_of_rank : held) {
    std::sort(chunks_of_rank.begin(), chunks_of_rank.end());
  }
  return chunks.Join(held);
}

}  // namespace

RingRates RatesOf(bool gpu, int64_t element_bytes, int threads) {
  if (gpu) return {.flops_per_second = element_bytes == 2 ? 350e12 : 40e12};
  return {.flops_per_second = 100e9 * threads, .bytes_per_second = 1.25e9};
}

std::vector<int> SampleRanks(const AttentionPlan& plan, int most, double looks) {
  const int ranks = plan.map().ranks();
  double count = ranks;
  if (plan.strategy() == Strategy::kGrouped) {
    count = std::min<double>({count, static_cast<double>(most),
                              looks / (2.0 * ranks * Branches(plan.pattern()) * plan.heads())});
    if (const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&plan.pattern())) {
      // Those of all peers together; the rows of heads that are alike once.
      const auto pairs = static_cast<double>(blocks->mask.Pairs());
      count = std::min(count, kPairsOfLook * looks / (2 * std::max(pairs, 1.0)));
    }
  }
  const auto last = static_cast<int64_t>(count) - 1;
  std::vector<int> sampled;
  for (int64_t i = 0; i < last; ++i) {
    sampled.push_back(static_cast<int>(i * (ranks - 1) / last));
  }
  if (last >= 0) sampled.push_back(ranks - 1);
  return sampled;
}

std::vector<std::string> Layouts::Explain() const {
  std::vector<std::string> lines;
  for (size_t i = 0; i < all.size(); ++i) {
    const LayoutCost& cost = all[i].cost;
    std::string& line = lines.emplace_back(i == 0 ? "chosen: " : "not: ");
    absl::StrAppend(&line, all[i].name);
    if (i == 0 && !reason.empty()) {
      absl::StrAppend(&line, ": ", reason);
    } else {
      absl::StrAppendFormat(&line,
                            ": %.3g ms a layer, %.3g of them exchange; busiest rank %.2f times the "
                            "mean; exchanges %s, needs %s more memory",
                            1e3 * cost.seconds, 1e3 * cost.exchange_seconds, cost.imbalance,
                            HumanBytes(cost.exchanged_bytes), HumanBytes(cost.memory_bytes));
    }
  }
  return lines;
}

absl::StatusOr<Layouts> ChooseLayout(const RingCall& call, const RingRates& rates) {
  Layouts layouts;
  AddMaps(call, "contiguous chunks", &ShardMap::Contiguous, call.ranks, &layouts.all);
  ASSIGN_OR_RETURN(const AttentionPlan first, PlanOf(call, layouts.chosen()));
  if (call.ranks == 1) {
    layouts.reason = "the whole sequence";
    layouts.all.erase(layouts.all.begin() + 1, layouts.all.end());
    return layouts;
  }
  if (IsCausal(call.pattern) && call.tokens / 2 >= call.ranks) {
    AddMaps(call, "zigzag pairs of chunks", &ShardMap::Zigzag, 2 * call.ranks, &layouts.all);
  }
  const double looks = kMaxLooks / static_cast<double>(layouts.all.size() + 2);
  if (SampleRanks(first, kMaxSampledRanks, looks).empty()) {
    layouts.reason = "ranks x branches x heads are too many to predict what others would cost";
    layouts.all.erase(layouts.all.begin() + 1, layouts.all.end());
    return layouts;
  }
  if (call.tokens / kChunksOfDealt >= call.ranks) {
    const std::vector<int64_t> aligns =
        Aligns(call.pattern, call.tokens / call.ranks / kChunksOfDealt);
    ASSIGN_OR_RETURN(ShardMap map, Dealt(call, aligns.empty() ? 1 : aligns[0]));
    if (IsEven(map))
      layouts.all.push_back({std::move(map), Strategy::kGrouped, "chunks dealt out by their work"});
  }
  const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&call.pattern);
  if (blocks == nullptr || !blocks->gated) {
    layouts.all.push_back({ShardMap::Contiguous(call.tokens, call.ranks, 1), Strategy::kHeads,
                           "tokens swapped for heads"});
  }
  size_t chosen = 0;
  for (size_t i = 0; i < layouts.all.size(); ++i) {
    Layout& layout = layouts.all[i];
    ASSIGN_OR_RETURN(const AttentionPlan plan, PlanOf(call, layout));
    layout.cost = CostOf(call, rates, plan, looks);
    if (IsBetter(layout, layouts.all[chosen])) chosen = i;
  }
  std::rotate(layouts.all.begin(), layouts.all.begin() + chosen, layouts.all.begin() + chosen + 1);
  return layouts;
}

absl::StatusOr<AttentionPlan> PlanOf(const RingCall& call, const Layout& layout) {
  return AttentionPlan::Create(call.pattern, layout.map, call.heads, call.kv_heads,
                               layout.strategy);
}

}  // namespace ringmaster::attention

#pragma once

#include <cstdint>
#include <vector>

#include "attention/plan.h"
#include "attention/rank_parts.h"
#include "tests/attention/attention_case.h"

namespace ringmaster::attention {

// The parts of each rank of a problem.
inline std::vector<RankParts> PartsOf(const AttentionCase& problem) {
  const auto plan =
      AttentionPlan::Create(problem.options, problem.map, static_cast<int>(problem.q.size(2)),
                            static_cast<int>(problem.k.size(2)));
  std::vector<RankParts> parts;
  for (int rank = 0; rank < problem.map.ranks(); ++rank)
    parts.push_back(MakeRankParts(*plan, rank));
  return parts;
}

// Calls f(token, head, row of the message) for what a message consists of.
template <typename F>
void ForEachMessageRow(const RankParts::Message& message, const F& f) {
  int64_t row = 0;
  for (const RowSet& set : message.local) {
    for (const Run& run : set.runs) {
      for (int64_t i = 0; i < run.count; ++i) f(run.first + i * run.step, run.head, row++);
    }
  }
}

// Calls f(owner, token, head, receiver, row) for each row of the receiver's pool and where the
// owner has it, for all ranks of a ring.
template <typename F>
void ForEachPoolRow(const std::vector<RankParts>& ranks, const F& f) {
  for (size_t to = 0; to < ranks.size(); ++to) {
    ForEachMessageRow(ranks[to].kept, [&](int64_t token, int64_t head, int64_t row) {
      f(to, token, head, to, ranks[to].kept.begin + row);
    });
    for (const RankParts::Message& incoming : ranks[to].incoming) {
      for (const RankParts::Message& outgoing : ranks[incoming.peer].outgoing) {
        if (outgoing.peer != static_cast<int>(to)) continue;
        ForEachMessageRow(outgoing, [&](int64_t token, int64_t head, int64_t row) {
          f(static_cast<size_t>(incoming.peer), token, head, to, incoming.begin + row);
        });
      }
    }
  }
}

}  // namespace ringmaster::attention

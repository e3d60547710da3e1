// Runs of several branches against what each row says.
#include "attention/tiles/joint_runs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "attention/kernels/tile_list.h"
#include "attention/plan/plan.h"
#include "tests/attention/random.h"

namespace ringmaster::attention {
namespace {

constexpr size_t kMostSteps = 15;

RankParts PartsOf(const DilatedAttentionOptions& options, const ShardMap& map, int rank,
                  int heads) {
  return MakeRankParts(*AttentionPlan::Create(options, map, heads, heads), rank);
}

std::set<int64_t> StepsOf(const RankParts& parts) {
  std::set<int64_t> steps;
  for (const Part& part : parts.local) {
    for (const Run& run : part.queries.runs) {
      if (run.count > 1) steps.insert(run.step);
    }
  }
  return steps;
}

std::set<int64_t> StepsOf(const RankParts& parts, const JointRuns& joint) {
  std::set<int64_t> steps = StepsOf(parts);
  for (const JointRun& run : joint.runs) {
    if (run.rows.count > 1) steps.insert(run.rows.step);
  }
  return steps;
}

using Place = std::pair<int64_t, int64_t>;                    // head, token
using InProblem = std::tuple<const Part*, int64_t, int64_t>;  // part, group, number of the query

template <typename F>
void ForEachQuery(const Part& part, const F& f) {
  for (int64_t group = 0; group < part.queries.groups(); ++group) {
    for (const Span& span : SpansOf(part.queries, group)) {
      for (int64_t i = 0; i < span.run.count; ++i) {
        f(Place(span.run.head, span.run.first + i * span.run.step),
          InProblem(&part, group, span.begin + i));
      }
    }
  }
}

// Each place once, in all problems of the joined branches that have it and in no others.
void Check(const RankParts& parts, const JointRuns& joint, int64_t places) {
  std::map<Place, std::vector<InProblem>> want, got;
  for (const Part& part : parts.local) {
    if (joint.branches.count(part.branch) == 0) continue;
    ForEachQuery(part, [&](const Place& place, const InProblem& in) { want[place].push_back(in); });
  }
  ASSERT_EQ(static_cast<int64_t>(want.size()), places);
  for (const JointRun& run : joint.runs) {
    for (int64_t i = 0; i < run.rows.count; ++i) {
      auto& problems = got[{run.rows.head, run.rows.first + i * run.rows.step}];
      ASSERT_TRUE(problems.empty()) << "a place is in two runs";
      for (const ProblemRows& rows : run.problems) {
        problems.emplace_back(rows.part, rows.group, rows.first + i * rows.step);
      }
    }
  }
  for (auto* problems : {&want, &got}) {
    for (auto& [place, in] : *problems) std::sort(in.begin(), in.end());
  }
  EXPECT_EQ(got, want);
}

TEST(JointRunsTest, HaveEveryQueryInAllItsProblems) {
  for (uint64_t seed = 1; seed <= 400 && !HasFailure(); ++seed) {
    Random random(seed);
    const int64_t tokens = random.Between(1, 300);
    const int heads = static_cast<int>(random.Between(1, 5));
    DilatedAttentionOptions options{.branches = {{random.Between(1, tokens), 1}},
                                    .causal = random.OneIn(2)};
    options.offset_mode = random.OneIn(2) ? OffsetMode::kPaper : OffsetMode::kTorchscale;
    for (int64_t more = random.Between(0, 4); more > 0; --more) {
      const int64_t rate =
          random.OneIn(3) ? random.Between(1, 20) : int64_t{1} << random.Between(0, 5);
      options.branches.push_back({random.Between(rate, rate + tokens), rate});
    }
    const ShardMap map = ShardMap::Contiguous(tokens, static_cast<int>(random.Between(1, 3)), 1);
    for (int rank = 0; rank < map.ranks(); ++rank) {
      if (map.LocalTokens(rank) == 0) continue;
      const RankParts parts = PartsOf(options, map, rank, heads);
      const bool far = std::any_of(parts.far.begin(), parts.far.end(),
                                   [](const Part& part) { return part.branch == 0; });
      if (far) continue;
      SCOPED_TRACE(testing::Message() << "seed " << seed << " rank " << rank);
      const size_t most_steps = StepsOf(parts).size() + random.Between(0, 3);
      const JointRuns joint = JoinBranches(parts, 0, 64, static_cast<int>(random.Between(0, 5)),
                                           StepsOf(parts), most_steps);
      EXPECT_TRUE(joint.branches.count(0) == 1);
      for (const Part& part : parts.far) EXPECT_EQ(joint.branches.count(part.branch), 0u);
      Check(parts, joint, map.LocalTokens(rank) * heads);
      EXPECT_LE(StepsOf(parts, joint).size(), most_steps);
    }
  }
}

JointRuns JointOf(const std::vector<Branch>& branches, int64_t tokens, size_t most_steps,
                  int head_dim = 128) {
  const RankParts parts = PartsOf({.branches = branches}, ShardMap::Contiguous(tokens, 1, 1), 0, 2);
  return JoinBranches(parts, 0, head_dim, {}, StepsOf(parts), most_steps);
}

// What LongNet has; rates that divide none, or are far from one another, or want too many steps,
// stay apart.
TEST(JointRunsTest, JoinWhatIsWorthIt) {
  const std::vector<Branch> longnet = {{2048, 1}, {4096, 2}, {8192, 4}, {16384, 8}, {32768, 16}};
  EXPECT_EQ(JointOf(longnet, 65536, kMostSteps).branches, (std::set<int>{0, 1, 2}));
  EXPECT_EQ(JointOf(longnet, 65536, kMostSteps, 64).branches, (std::set<int>{0, 1, 2}));
  EXPECT_EQ(JointOf({{2048, 1}, {4096, 17}}, 65536, kMostSteps).branches, std::set<int>{0});
  EXPECT_EQ(JointOf({{2048, 1}, {4096, 2}, {4096, 3}}, 8192, kMostSteps).branches,
            (std::set<int>{0, 1}));
  EXPECT_EQ(JointOf({{64, 1}, {256, 16}}, 256, kMostSteps).branches, std::set<int>{0});
  const std::vector<Branch> four = {{2048, 1}, {8192, 4}};
  EXPECT_EQ(JointOf(four, 8192, 3).branches, (std::set<int>{0, 1}));
  EXPECT_EQ(JointOf(four, 8192, 2).branches, std::set<int>{0});
}

TEST(JointRunsTest, AreCutByOneLadderOfSteps) {
  // Of the second branch's six, what it leaves of steps of two goes to six, not four, and to
  // twelve.
  const RankParts parts =
      PartsOf({.branches = {{60, 1}, {15, 6}, {60, 12}}}, ShardMap::Contiguous(60, 1, 1), 0, 1);
  const JointRuns joint = JoinBranches(parts, 0, 64, 2, StepsOf(parts), 4);
  EXPECT_EQ(joint.branches, (std::set<int>{0, 1, 2}));
  EXPECT_EQ(StepsOf(parts, joint), (std::set<int64_t>{1, 2, 6, 12}));
  Check(parts, joint, 60);
}

// Tiles of 128 queries that are four tokens apart: a segment of 2048 has four in each of two sets
// and eight in the others.
TEST(JointRunsTest, CutSegmentsIntoFullTiles) {
  const RankParts parts = PartsOf({.branches = {{2048, 1}, {4096, 2}, {8192, 4}}},
                                  ShardMap::Contiguous(8192, 1, 1), 0, 1);
  const JointRuns joint = JoinBranches(parts, 0, 128, 2, StepsOf(parts), kMostSteps);
  ASSERT_EQ(joint.branches, (std::set<int>{0, 1, 2}));
  std::map<std::pair<int64_t, int64_t>, int> runs;  // step, count
  for (const JointRun& run : joint.runs) ++runs[{run.rows.step, run.rows.count}];
  EXPECT_EQ(runs, (std::map<std::pair<int64_t, int64_t>, int>{{{2, 1024}, 4}, {{4, 512}, 8}}));
}

}  // namespace
}  // namespace ringmaster::attention

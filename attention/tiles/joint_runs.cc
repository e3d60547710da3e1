#include "attention/tiles/joint_runs.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "attention/kernels/tile_list.h"

namespace ringmaster::attention {
namespace {

// What a tile takes beside the blocks of keys that its consumers meet, in such blocks: with this,
// and consumers who wait for half of what others are behind them, come the times of 1M tokens of
// LongNet's branches, none to four of them joined, within 2.5 % (H100; heads of 128 within 0.2 %).
// Parts that are stored and merged take no time of their own then.
constexpr double kBlocksPerTile = 4.8;

std::vector<JointRun> RunsOf(const Part& part) {
  std::vector<JointRun> runs;
  for (int64_t group = 0; group < part.queries.groups(); ++group) {
    for (const Span& span : SpansOf(part.queries, group)) {
      runs.push_back({span.run, {{&part, group, span.begin}}});
    }
  }
  return runs;
}

// The queries of a branch: those of each head by token, in problems that do not overlap.
struct BranchRuns {
  int64_t step = 0;
  std::map<int64_t, std::vector<JointRun>> heads;

  void Add(const Part& part) {
    for (JointRun& run : RunsOf(part)) heads[run.rows.head].push_back(std::move(run));
  }

  // False if runs differ in their steps or lie between each other.
  bool Sort() {
    for (auto& [head, runs] : heads) {
      std::sort(runs.begin(), runs.end(),
                [](const JointRun& a, const JointRun& b) { return a.rows.first < b.rows.first; });
      step = step == 0 ? runs[0].rows.step : step;
      for (size_t i = 0; i < runs.size(); ++i) {
        if (runs[i].rows.step != step ||
            (i > 0 && LastOf(runs[i - 1].rows) >= runs[i].rows.first)) {
          return false;
        }
      }
    }
    return true;
  }

  static int64_t LastOf(const Run& run) { return run.first + (run.count - 1) * run.step; }
};

// Rows i, i + every, ... of a run, `count` of them.
JointRun Select(const JointRun& from, int64_t i, int64_t every, int64_t count) {
  JointRun part = from;
  part.rows.first += i * from.rows.step;
  part.rows.step *= every;
  part.rows.count = count;
  for (ProblemRows& rows : part.problems) {
    rows.first += i * rows.step;
    rows.step *= every;
  }
  return part;
}

// Between the rates of two branches that are joined, and of a branch that is.
constexpr int64_t kMostFactor = 16;
constexpr int64_t kMostStep = (int64_t{1} << 16) - 1;

// The smallest from 2 on, or above kMostFactor.
int64_t SmallestFactor(int64_t n) {
  int64_t factor = 2;
  while (factor <= kMostFactor && n % factor != 0) ++factor;
  return factor;
}

// Cuts runs until all rows of one are in the same problems of the branches.
class Cutter {
 public:
  // The branches in the order of their steps, each a multiple of the one before.
  // Runs of more than one row get no steps but `ladder`'s, where each branch's is reached from any
  // that divides it.
  Cutter(const std::vector<const BranchRuns*>& branches, const std::set<int64_t>& ladder,
         std::vector<JointRun>* out)
      : branches_(branches), ladder_(ladder), out_(out) {}

  void Cut(const JointRun& run, size_t branch = 0) {
    if (run.rows.count == 0) return;
    if (branch == branches_.size()) {
      out_->push_back(run);
      return;
    }
    const auto head = branches_[branch]->heads.find(run.rows.head);
    if (head == branches_[branch]->heads.end()) return Cut(run, branch + 1);
    const std::vector<JointRun>& others = head->second;
    auto other = std::partition_point(others.begin(), others.end(), [&](const JointRun& x) {
      return BranchRuns::LastOf(x.rows) < run.rows.first;
    });
    // Each stretch has rows of one problem at most.
    int64_t done = 0;
    while (done < run.rows.count) {
      const auto next = other == others.end() ? other : std::next(other);
      int64_t end = run.rows.count;
      if (next != others.end()) {
        const int64_t before = next->rows.first - run.rows.first;
        end = std::clamp<int64_t>((before - 1) / run.rows.step + 1, done, end);
      }
      const JointRun stretch = Select(run, done, 1, end - done);
      if (other == others.end()) {
        Cut(stretch, branch + 1);
      } else {
        CutBy(stretch, *other, branch);
      }
      done = end;
      other = next;
    }
  }

 private:
  // Rows of `run` that are in `other`, and those that are not.
  void CutBy(const JointRun& run, const JointRun& other, size_t branch) {
    if (run.rows.count == 0) return;
    const int64_t step = run.rows.step, apart = other.rows.first - run.rows.first;
    if (apart % step != 0) return Cut(run, branch + 1);
    if (step == other.rows.step) return CutAt(run, other, branch);
    const int64_t factor = NextStep(step, other.rows.step) / step;
    const int64_t residue = ((apart / step) % factor + factor) % factor;
    for (int64_t i = 0; i < factor; ++i) {
      const JointRun part = Select(run, i, factor, (run.rows.count - i + factor - 1) / factor);
      if (i == residue) {
        CutBy(part, other, branch);
      } else {
        Cut(part, branch + 1);
      }
    }
  }

  int64_t NextStep(int64_t step, int64_t last) const {
    return *std::find_if(ladder_.upper_bound(step), ladder_.end(),
                         [&](int64_t next) { return next % step == 0 && last % next == 0; });
  }

  // The same of runs of one step and residue.
  void CutAt(const JointRun& run, const JointRun& other, size_t branch) {
    const int64_t apart = (other.rows.first - run.rows.first) / run.rows.step;
    const int64_t begin = std::clamp<int64_t>(apart, 0, run.rows.count);
    const int64_t end = std::clamp<int64_t>(apart + other.rows.count, begin, run.rows.count);
    Cut(Select(run, 0, 1, begin), branch + 1);
    JointRun joint = Select(run, begin, 1, end - begin);
    const ProblemRows& rows = other.problems[0];
    joint.problems.push_back({rows.part, rows.group, rows.first + begin - apart, 1});
    Cut(joint, branch + 1);
    Cut(Select(run, end, 1, run.rows.count - end), branch + 1);
  }

  const std::vector<const BranchRuns*>& branches_;
  const std::set<int64_t>& ladder_;
  std::vector<JointRun>* const out_;
};

// Blocks of keys that the first `rows` queries of those from `at` on meet.
double BlocksSeen(const ProblemKeys& problems, int64_t at, int64_t rows) {
  double blocks = 0;
  for (const auto& [problem, spans] : problems) {
    for (const Span& keys : spans) {
      const int64_t seen =
          std::min(keys.run.count, problem->step * (rows - 1) + DiagonalOf(*problem, at, keys) + 1);
      blocks += seen <= 0 ? 0 : static_cast<double>((seen - 1) / kernels::kTileKeys + 1);
    }
  }
  return blocks;
}

// What the tiles of a run take.
double BlocksOf(const JointRun& run, int head_dim) {
  const int tile_rows = kernels::TileRowsOf(head_dim);
  const int consumers = tile_rows / kernels::kRowsOfConsumer;
  const auto problems = KeysOf(run);
  double blocks = 0;
  for (int64_t at = 0; at < run.rows.count; at += tile_rows) {
    const int64_t end = std::min<int64_t>(tile_rows, run.rows.count - at);
    double all = 0, most = 0;
    for (int64_t row = 0; row < end; row += kernels::kRowsOfConsumer) {
      most = BlocksSeen(problems, at, std::min<int64_t>(end, row + kernels::kRowsOfConsumer));
      all += most;
    }
    blocks += kBlocksPerTile + (all / consumers + most) / 2;
  }
  return blocks;
}

double BlocksOf(const std::vector<JointRun>& runs, int head_dim) {
  double blocks = 0;
  for (const JointRun& run : runs) blocks += BlocksOf(run, head_dim);
  return blocks;
}

// Inserts the steps of what is cut between runs of two steps. False if there are none.
bool AddSteps(int64_t from, int64_t to, std::set<int64_t>* steps) {
  if (to % from != 0 || to > kMostStep) return false;
  while (from < to) {
    const int64_t factor = SmallestFactor(to / from);
    if (factor > kMostFactor) return false;
    steps->insert(from *= factor);
  }
  return true;
}

// Those that may be joined to the base, by their steps, each a multiple of the one before, and the
// steps that lead from one to the next; with `steps`, which there are already, at most
// `most_steps`.
struct Chain {
  std::vector<int> branches;
  std::set<int64_t> ladder;
};
Chain ChainOf(const std::map<int, BranchRuns>& branches, int base, const std::set<int64_t>& steps,
              size_t most_steps) {
  std::vector<int> all;
  Chain chain;
  for (const auto& [branch, runs] : branches) {
    if (branch != base) all.push_back(branch);
  }
  std::stable_sort(all.begin(), all.end(),
                   [&](int a, int b) { return branches.at(a).step < branches.at(b).step; });
  int64_t step = branches.at(base).step;
  for (const int branch : all) {
    const int64_t next = branches.at(branch).step;
    std::set<int64_t> ladder = chain.ladder, all_steps = steps;
    if (!AddSteps(step, next, &ladder)) continue;
    all_steps.insert(ladder.begin(), ladder.end());
    if (all_steps.size() > most_steps) continue;
    chain.ladder = std::move(ladder);
    step = next;
    chain.branches.push_back(branch);
  }
  return chain;
}

}  // namespace

std::vector<Span> SpansOf(const RowSet& set, int64_t group) {
  std::vector<Span> spans;
  int64_t begin = 0;
  for (size_t i = set.group_begin[group]; i < set.group_begin[group + 1]; ++i) {
    spans.push_back({set.runs[i], begin});
    begin += set.runs[i].count;
  }
  return spans;
}

ProblemKeys KeysOf(const JointRun& run) {
  ProblemKeys keys;
  for (const ProblemRows& rows : run.problems) {
    keys.emplace_back(&rows, SpansOf(rows.part->keys, rows.group));
  }
  return keys;
}

int64_t DiagonalOf(const ProblemRows& rows, int64_t at, const Span& keys) {
  const Part& part = *rows.part;
  return part.causal ? part.keys.rows_per_group - part.queries.rows_per_group + rows.first +
                           at * rows.step - keys.begin
                     : kernels::kAllVisible;
}

JointRuns JoinBranches(const RankParts& parts, int base, int head_dim, std::optional<int> count,
                       const std::set<int64_t>& steps, size_t most_steps) {
  std::map<int, BranchRuns> branches;
  for (const Part& part : parts.local) branches[part.branch].Add(part);
  for (const Part& part : parts.far) branches.erase(part.branch);
  for (auto runs = branches.begin(); runs != branches.end();) {
    runs = runs->second.Sort() || runs->first == base ? std::next(runs) : branches.erase(runs);
  }
  const Chain found = ChainOf(branches, base, steps, most_steps);
  const std::vector<int>& chain = found.branches;
  const auto& heads = branches.at(base).heads;
  const auto join = [&](size_t joined, const std::vector<JointRun>& runs) {
    std::vector<JointRun> result;
    std::vector<const BranchRuns*> some;
    for (size_t i = 0; i < joined; ++i) some.push_back(&branches.at(chain[i]));
    Cutter cutter(some, found.ladder, &result);
    for (const JointRun& run : runs) cutter.Cut(run);
    return result;
  };
  // All heads take as long as the first.
  const auto& [head, first] = *heads.begin();
  size_t best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (size_t joined = 0; joined <= chain.size() && !count.has_value(); ++joined) {
    double blocks = BlocksOf(join(joined, first), head_dim);
    for (size_t i = joined; i < chain.size(); ++i) {
      const auto& of_heads = branches.at(chain[i]).heads;
      const auto alone = of_heads.find(head);
      blocks += alone == of_heads.end() ? 0 : BlocksOf(alone->second, head_dim);
    }
    if (blocks < least) best = joined, least = blocks;
  }
  if (count.has_value()) best = std::min<size_t>(chain.size(), std::max(0, *count));
  JointRuns result = {{}, {base}};
  for (size_t i = 0; i < best; ++i) result.branches.insert(chain[i]);
  for (const Part& part : parts.local) {
    if (part.branch != base || best > 0) continue;
    std::vector<JointRun> runs = RunsOf(part);
    std::move(runs.begin(), runs.end(), std::back_inserter(result.runs));
  }
  // Head by head, since what is joined is read again by the runs that follow.
  for (auto runs = heads.begin(); runs != heads.end() && best > 0; ++runs) {
    std::vector<JointRun> cut = join(best, runs->second);
    std::move(cut.begin(), cut.end(), std::back_inserter(result.runs));
  }
  return result;
}

}  // namespace ringmaster::attention

#include "attention/plan/block_patterns.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status_macros.h"

namespace ringmaster::attention {
namespace {

using Kind = BlockPattern::Kind;

// How much less likely a block of another node is to be seen, until the own node's all are.
constexpr int64_t kAcrossNodes = 8;

constexpr struct {
  std::string_view name;
  BlockPattern pattern;
} kNamed[] = {
    {"local_window_25", {.kind = Kind::kLocalWindow, .density = 0.25}},
    {"local_window_10", {.kind = Kind::kLocalWindow, .density = 0.1}},
    {"local_window_5", {.kind = Kind::kLocalWindow, .density = 0.05}},
    {"dilated_sparse_25", {.kind = Kind::kDilatedSparse, .density = 0.25}},
    {"dilated_sparse_10", {.kind = Kind::kDilatedSparse, .density = 0.1}},
    {"global_local_25", {.kind = Kind::kGlobalLocal, .density = 0.25}},
    {"global_local_10", {.kind = Kind::kGlobalLocal, .density = 0.1}},
    {"hierarchical_25", {.kind = Kind::kHierarchical, .density = 0.25}},
    {"hierarchical_10", {.kind = Kind::kHierarchical, .density = 0.1}},
    {"random_25", {.kind = Kind::kRandom, .density = 0.25}},
    {"random_10", {.kind = Kind::kRandom, .density = 0.1}},
    {"random_5", {.kind = Kind::kRandom, .density = 0.05}},
};

// Those of the standard differ between libraries. SplitMix64 (Steele et al., 2014).
class Draws {
 public:
  explicit Draws(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15;
    uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
  }
  // Evenly of 0 .. limit - 1, as far as 64 bits go.
  uint64_t Below(uint64_t limit) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(Next()) * limit >> 64);
  }

 private:
  uint64_t state_;
};

BlockMaskShape ShapeOf(const BlockPattern& pattern, int64_t tokens) {
  const bool differ = pattern.kind == Kind::kHierarchical || pattern.kind == Kind::kRandom;
  return {.heads = differ ? pattern.heads : 1, .tokens = tokens, .block_size = pattern.block_size};
}

// The kinds of one size: the more, the denser.
class Sized {
 public:
  Sized(const BlockPattern& pattern, int64_t tokens)
      : pattern_(pattern), shape_(ShapeOf(pattern, tokens)) {}

  absl::StatusOr<BlockMask> Closest() const {
    // The first that is dense enough, or the one before it.
    int64_t low = 0, high = 2 * shape_.blocks();
    while (low < high) {
      const int64_t size = (low + high) / 2;
      ASSIGN_OR_RETURN(const BlockMask mask, OfSize(size));
      if (mask.Density(pattern_.causal) < pattern_.density) {
        low = size + 1;
      } else {
        high = size;
      }
    }
    ASSIGN_OR_RETURN(BlockMask above, OfSize(low));
    ASSIGN_OR_RETURN(BlockMask below, OfSize(std::max<int64_t>(0, low - 1)));
    const auto miss = [&](const BlockMask& mask) {
      return std::abs(mask.Density(pattern_.causal) - pattern_.density);
    };
    return miss(below) < miss(above) ? below : above;
  }

 private:
  absl::StatusOr<BlockMask> OfSize(int64_t size) const {
    return BlockMask::Create(shape_, [&](int64_t, int64_t query, BlockRow& row) {
      switch (pattern_.kind) {
        case Kind::kDilatedSparse:
          return ShowDilated(query, size + 1, row);
        case Kind::kGlobalLocal: {
          const int64_t globals = (size + 3) / 4;
          ShowWindow(query, size - globals, row);
          return Show(query, 0, query < globals ? shape_.blocks() : globals, row);
        }
        default:
          return ShowWindow(query, size, row);
      }
    });
  }

  // Blocks [begin, end), as far as there are and a query may see them.
  void Show(int64_t query, int64_t begin, int64_t end, BlockRow& row) const {
    row.ShowRange(std::max<int64_t>(0, begin),
                  std::min(end, pattern_.causal ? query + 1 : shape_.blocks()));
  }
  void ShowWindow(int64_t query, int64_t size, BlockRow& row) const {
    Show(query, query - size, query + size + 1, row);
  }
  // At distances below `width` all; up to twice as far every second, up to four times every fourth.
  void ShowDilated(int64_t query, int64_t width, BlockRow& row) const {
    ShowWindow(query, width - 1, row);
    for (int64_t step = 2; width < shape_.blocks(); step *= 2, width *= 2) {
      for (int64_t away = (width + step - 1) / step * step; away < 2 * width; away += step) {
        Show(query, query - away, query - away + 1, row);
        Show(query, query + away, query + away + 1, row);
      }
    }
  }

  const BlockPattern& pattern_;
  const BlockMaskShape shape_;
};

// Of all pairs of different blocks in turn, takes a given share.
class Share {
 public:
  explicit Share(double share) : share_(std::clamp(share, 0.0, 1.0)) {}

  // How many of the next `count`.
  int64_t Of(int64_t count) {
    offered_ += count;
    const auto due = static_cast<int64_t>(share_ * static_cast<double>(offered_));
    const int64_t taken = std::clamp<int64_t>(due - taken_, 0, count);
    taken_ += taken;
    return taken;
  }

 private:
  double share_;
  int64_t offered_ = 0;
  int64_t taken_ = 0;
};

// The kinds that choose from what a query might see.
class Chosen {
 public:
  Chosen(const BlockPattern& pattern, const ShardMap& map, int ranks_per_node)
      : pattern_(pattern), shape_(ShapeOf(pattern, map.tokens())), node_(shape_.blocks(), 0) {
    if (pattern.kind != Kind::kHierarchical) return;
    for (int rank = 0; rank < map.ranks(); ++rank) {
      for (const TokenRange& range : map.Ranges(rank)) {
        const int64_t size = shape_.block_size;
        for (int64_t block = (range.begin + size - 1) / size; block * size < range.end; ++block) {
          node_[block] = rank / ranks_per_node;
        }
      }
    }
  }

  absl::StatusOr<BlockMask> Make() const {
    double near_pairs = 0, far_pairs = 0, own_pairs = 0;
    for (int64_t query = 0; query < shape_.blocks(); ++query) {
      const Candidates candidates = CandidatesOf(query);
      const double size = TokensOf(query);
      near_pairs += size * TokensOf(candidates.near);
      far_pairs += size * TokensOf(candidates.far);
      own_pairs += pattern_.causal ? size * (size + 1) / 2 : size * size;
    }
    // Rounded, so that what follows has the same bits everywhere.
    const double due =
        std::round(pattern_.density * (near_pairs + far_pairs + own_pairs)) - own_pairs;
    const double near_share =
        std::min(1.0, kAcrossNodes * due / std::max(1.0, kAcrossNodes * near_pairs + far_pairs));
    const double far_share =
        near_share < 1 ? near_share / kAcrossNodes : (due - near_pairs) / std::max(1.0, far_pairs);
    Share near(near_share), far(far_share);
    return BlockMask::Create(shape_, [&](int64_t head, int64_t query, BlockRow& row) {
      const Candidates candidates = CandidatesOf(query);
      row.Show(query);
      Choose(candidates.near, near.Of(Count(candidates.near)), head, query, row);
      Choose(candidates.far, far.Of(Count(candidates.far)), head, query, row);
    });
  }

 private:
  // Blocks that a query might see beside its own: of its own node, and of others. All are near
  // where nodes do not matter.
  struct Candidates {
    std::vector<int64_t> near, far;
  };

  Candidates CandidatesOf(int64_t query) const {
    Candidates candidates;
    for (int64_t key = 0; key < (pattern_.causal ? query : shape_.blocks()); ++key) {
      if (key == query) continue;
      (node_[key] == node_[query] ? candidates.near : candidates.far).push_back(key);
    }
    return candidates;
  }

  static int64_t Count(const std::vector<int64_t>& blocks) {
    return static_cast<int64_t>(blocks.size());
  }
  double TokensOf(int64_t block) const {
    return static_cast<double>(
        std::min(shape_.block_size, shape_.tokens - block * shape_.block_size));
  }
  double TokensOf(const std::vector<int64_t>& blocks) const {
    double tokens = 0;
    for (const int64_t block : blocks) tokens += TokensOf(block);
    return tokens;
  }

  void Choose(const std::vector<int64_t>& blocks, int64_t count, int64_t head, int64_t query,
              BlockRow& row) const {
    const int64_t all = Count(blocks);
    if (pattern_.kind == Kind::kRandom) {
      // Each of the blocks that are left with the chance that is left.
      Draws draws(Draws(Draws(pattern_.seed).Next() + head).Next() + query);
      for (int64_t i = 0; i < all && count > 0; ++i) {
        if (static_cast<int64_t>(draws.Below(all - i)) < count) {
          row.Show(blocks[i]);
          --count;
        }
      }
      return;
    }
    // Evenly, each row and head from another place.
    for (int64_t i = 0; i < all; ++i) {
      if ((i * count + query + head) % all < count) row.Show(blocks[i]);
    }
  }

  const BlockPattern& pattern_;
  const BlockMaskShape shape_;
  std::vector<int> node_;  // by block
};

}  // namespace

absl::Status BlockPattern::Validate() const {
  if (!(density > 0 && density <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("density of the block pattern is ", density,
                                                   "; it must be above 0 and at most 1"));
  }
  return BlockMaskShape{.heads = heads, .tokens = 0, .block_size = block_size}.Validate();
}

absl::StatusOr<BlockMask> MakeBlockMask(const BlockPattern& pattern, const ShardMap& map,
                                        int ranks_per_node) {
  RETURN_IF_ERROR(pattern.Validate());
  RETURN_IF_ERROR(ShapeOf(pattern, map.tokens()).Validate());
  if (ranks_per_node < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("ranks_per_node is ", ranks_per_node, "; it must be at least 1"));
  }
  return pattern.kind == Kind::kHierarchical || pattern.kind == Kind::kRandom
             ? Chosen(pattern, map, ranks_per_node).Make()
             : Sized(pattern, map.tokens()).Closest();
}

absl::StatusOr<BlockMask> MakeBlockMask(const BlockPattern& pattern, int64_t tokens) {
  if (pattern.kind == Kind::kHierarchical) {
    return absl::InvalidArgumentError(
        "kind of the block pattern is hierarchical; its mask follows from who holds which tokens");
  }
  return MakeBlockMask(pattern, ShardMap::Contiguous(tokens, 1, 1), 1);
}

absl::StatusOr<BlockPattern> FindBlockPattern(std::string_view name) {
  const auto* const found = std::find_if(std::begin(kNamed), std::end(kNamed),
                                         [&](const auto& named) { return named.name == name; });
  if (found == std::end(kNamed)) {
    return absl::InvalidArgumentError(
        absl::StrCat("there is no block pattern named \"", std::string(name),
                     "\"; known: ", absl::StrJoin(BlockPatternNames(), ", ")));
  }
  return found->pattern;
}

std::vector<std::string> BlockPatternNames() {
  std::vector<std::string> names;
  for (const auto& named : kNamed) names.emplace_back(named.name);
  return names;
}

}  // namespace ringmaster::attention

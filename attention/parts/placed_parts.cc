#include "attention/parts/placed_parts.h"

#include <ATen/ops/index_fill.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <iterator>
#include <list>
#include <utility>
#include <variant>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "attention/parts/zero_gradients.h"
#include "attention/plan/plan.h"

namespace ringmaster::attention {
namespace {

constexpr size_t kCacheBytes = size_t{1} << 30;
// Patterns that differ in nothing but their documents or blocks: mostly each is of one step, and
// all of its layers ask for the same.
constexpr int kVariantsKept = 4;

struct Key {
  AttentionPattern pattern;
  ShardMap map;
  int rank;
  int heads;
  int kv_heads;
  at::Device device;
  std::optional<TileShape> tiles;

  friend bool operator==(const Key&, const Key&) = default;
};

// The work is the same for every scale and gradient.
AttentionPattern WorkOf(AttentionPattern pattern) {
  std::visit([](auto& options) { options.scale.reset(); }, pattern);
  if (auto* dilated = std::get_if<DilatedAttentionOptions>(&pattern)) {
    dilated->mix_gradient = MixGradient::kExact;
  }
  return pattern;
}

// Whether they differ in nothing but their documents or blocks.
bool AreVariants(const AttentionPattern& a, const AttentionPattern& b) {
  if (a.index() != b.index()) return false;
  AttentionPattern same = a;
  std::visit([&](auto& options) { options.documents = DocumentsOf(b); }, same);
  if (auto* blocks = std::get_if<BlockSparseAttentionOptions>(&same)) {
    blocks->mask = std::get<BlockSparseAttentionOptions>(b).mask;
  }
  return same == b;
}

bool AreVariants(const Key& a, const Key& b) {
  return a.rank == b.rank && a.heads == b.heads && a.kv_heads == b.kv_heads &&
         a.device == b.device && a.tiles == b.tiles && a.map == b.map &&
         AreVariants(a.pattern, b.pattern);
}

class Cache {
 public:
  std::shared_ptr<const PlacedParts> Find(const Key& key) {
    absl::MutexLock lock(&mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->first == key) {
        entries_.splice(entries_.begin(), entries_, entry);
        return entry->second;
      }
    }
    return nullptr;
  }

  void Add(Key key, std::shared_ptr<const PlacedParts> parts) {
    absl::MutexLock lock(&mutex_);
    entries_.emplace_front(std::move(key), std::move(parts));
    bytes_ += BytesOf(entries_.front());
    int variants = 0;
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      const auto next = std::next(entry);
      if (AreVariants(entry->first, entries_.front().first) && ++variants > kVariantsKept) {
        Remove(entry);
      }
      entry = next;
    }
    while (bytes_ > kCacheBytes && entries_.size() > 1) Remove(std::prev(entries_.end()));
  }

 private:
  using Entry = std::pair<Key, std::shared_ptr<const PlacedParts>>;

  void Remove(std::list<Entry>::iterator entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    bytes_ -= BytesOf(*entry);
    entries_.erase(entry);
  }

  static size_t BytesOf(const Entry& entry) {
    const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&entry.first.pattern);
    return entry.second->bytes() + (blocks == nullptr ? 0 : blocks->mask.bytes()) +
           DocumentsOf(entry.first.pattern).size() * sizeof(int64_t);
  }

  absl::Mutex mutex_;
  // Most recently used first. A job has a handful, so they are searched one by one.
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

at::Tensor GatesOf(const Part& part, at::Device device) {
  return part.gates.empty() ? at::Tensor() : at::tensor(part.gates, at::kLong).to(device);
}

// Takes the local rows of messages: one after the other.
RowSet TakeRows(absl::Span<RankParts::Message> messages) {
  RowSet all;
  size_t sets = 0;
  for (RankParts::Message& message : messages) {
    for (const RowSet& set : message.local) {
      all.runs.insert(all.runs.end(), set.runs.begin(), set.runs.end());
      all.rows_per_group += set.rows();
      ++sets;
    }
    message.local = {};
  }
  all.group_begin.push_back(all.runs.size());
  all.distinct = sets <= 1;
  return all;
}

bool IsGated(const AttentionPattern& pattern) {
  const auto* blocks = std::get_if<BlockSparseAttentionOptions>(&pattern);
  return blocks != nullptr && blocks->gated;
}

}  // namespace

PlacedParts::PlacedParts(RankParts parts, int heads, int kv_heads, at::Device device,
                         const std::optional<TileShape>& tiles)
    : parts_(std::move(parts)) {
  const ZeroGradients zero = FindZeroGradients(parts_, heads, kv_heads);
  zero_dq_ = at::tensor(zero.queries, at::kLong).to(device);
  zero_dk_ = at::tensor(zero.keys, at::kLong).to(device);
  if (tiles.has_value()) {
    tiles_ = std::make_unique<PlacedTiles>(parts_, *tiles, device);
    parts_.local = {};
    parts_.far = {};
  } else {
    alone_ = {{parts_.alone, heads, device}, {parts_.alone_keys, kv_heads, device}};
    for (const Part& part : parts_.local) {
      local_.push_back({&part,
                        {part.queries, heads, device},
                        {part.keys, kv_heads, device},
                        GatesOf(part, device)});
    }
    for (const Part& part : parts_.far) {
      far_.push_back(
          {&part, {part.queries, heads, device}, {part.keys, 1, device}, GatesOf(part, device)});
    }
  }
  RowSet sent = TakeRows(absl::MakeSpan(parts_.outgoing)), held = TakeRows({&parts_.kept, 1});
  if (!tiles.has_value()) {
    sent_ = std::move(sent);
    held_ = std::move(held);
    outgoing_.emplace(sent_, kv_heads, device);
    kept_.emplace(held_, kv_heads, device);
  }
}

void PlacedParts::SetKnownZeros(const at::Tensor& dq, const at::Tensor& dk) const {
  const auto zero = [](const at::Tensor& gradients, const at::Tensor& places) {
    if (places.numel() > 0) {
      gradients.flatten(1, 2).index_fill_(1, places, 0);
    }
  };
  zero(dq, zero_dq_);
  zero(dk, zero_dk_);
}

size_t PlacedParts::bytes() const {
  size_t sum = parts_.bytes() + (tiles_ == nullptr ? 0 : tiles_->bytes());
  for (const std::vector<Dense>* parts : {&local_, &far_}) {
    for (const Dense& part : *parts) {
      sum += sizeof(Dense) + part.queries.bytes() + part.keys.bytes() +
             (part.gates.defined() ? part.gates.nbytes() : 0);
    }
  }
  sum += sent_.bytes() + held_.bytes();
  for (const std::optional<PlacedRows>* rows : {&outgoing_, &kept_}) {
    sum += rows->has_value() ? (*rows)->bytes() : 0;
  }
  if (alone_.has_value()) {
    sum += alone_->queries.bytes() + alone_->keys.bytes();
  }
  return sum + zero_dq_.nbytes() + zero_dk_.nbytes();
}

std::shared_ptr<const PlacedParts> FindParts(const AttentionPattern& pattern, const ShardMap& map,
                                             int rank, int heads, int kv_heads, at::Device device,
                                             const std::optional<TileShape>& tiles) {
  static Cache* const cache = new Cache;
  Key key{WorkOf(pattern), map, rank, heads, kv_heads, device, tiles};
  const bool cached = !IsGated(pattern);
  std::shared_ptr<const PlacedParts> parts = cached ? cache->Find(key) : nullptr;
  if (parts == nullptr) {
    const auto plan = AttentionPlan::Create(key.pattern, map, heads, kv_heads);
    parts =
        std::make_shared<PlacedParts>(MakeRankParts(*plan, rank), heads, kv_heads, device, tiles);
    if (cached) cache->Add(std::move(key), parts);
  }
  return parts;
}

}  // namespace ringmaster::attention

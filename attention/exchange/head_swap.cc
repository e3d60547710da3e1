#include "attention/exchange/head_swap.h"

#include <ATen/ops/empty.h>

#include "attention/exchange/group_in_flight.h"

namespace ringmaster::attention {
namespace {

// The elements of a flat buffer, given out from the front.
class Elements {
 public:
  explicit Elements(const at::Tensor& buffer) : buffer_(buffer) {}
  at::Tensor Take(at::IntArrayRef sizes) {
    const int64_t count = c10::multiply_integers(sizes);
    at_ += count;
    return buffer_.narrow(0, at_ - count, count).view(sizes);
  }

 private:
  const at::Tensor& buffer_;
  int64_t at_ = 0;
};

// What a buffer holds for each peer, one after the other: so many elements, for no peer none.
template <typename Count>
std::vector<Slice> Slices(int ranks, int rank, const Count& count) {
  std::vector<Slice> slices;
  int64_t at = 0;
  for (int peer = 0; peer < ranks; ++peer) {
    const int64_t elements = peer == rank ? 0 : count(peer);
    if (elements > 0) slices.push_back({peer, at, elements});
    at += elements;
  }
  return slices;
}

at::Tensor BufferOf(const std::vector<Slice>& slices, const at::Tensor& like) {
  return at::empty({slices.empty() ? 0 : slices.back().begin + slices.back().rows}, like.options());
}

// Calls f(rows of the sequence, the same of a tensor of a rank's tokens) for each of its ranges.
template <typename F>
void ForEachRange(const ShardMap& map, int rank, const at::Tensor& whole, const at::Tensor& part,
                  const F& f) {
  int64_t at = 0;
  for (const TokenRange& range : map.Ranges(rank)) {
    f(whole.narrow(1, range.begin, range.size()), part.narrow(1, at, range.size()));
    at += range.size();
  }
}

void Copy(const at::Tensor& from, const at::Tensor& to) { to.copy_(from); }

}  // namespace

std::vector<at::Tensor> HeadSwap::ToHeads(const std::vector<Rows>& rows) const {
  const ShardMap& map = shares_.map();
  int64_t width = 0;  // elements of a token and key/value head
  for (const Rows& x : rows) width += x.tensor.size(0) * x.heads * x.tensor.size(3);
  const HeadShares::Share own = shares_.Of(rank_);
  const auto sends = Slices(map.ranks(), rank_, [&](int peer) {
    return map.LocalTokens(rank_) * shares_.Of(peer).count * width;
  });
  const auto receives = Slices(map.ranks(), rank_,
                               [&](int peer) { return map.LocalTokens(peer) * own.count * width; });
  const at::Tensor outgoing = BufferOf(sends, rows[0].tensor);
  const at::Tensor incoming = BufferOf(receives, rows[0].tensor);
  const auto share_of = [](const Rows& x, const HeadShares::Share& share) {
    return x.tensor.narrow(2, share.first * x.heads, share.count * x.heads);
  };
  Elements out(outgoing);
  for (const Slice& slice : sends) {
    for (const Rows& x : rows) {
      const at::Tensor part = share_of(x, shares_.Of(slice.peer));
      Copy(part, out.Take(part.sizes()));
    }
  }
  GroupInFlight group(exchange_, outgoing, sends, incoming, receives);
  std::vector<at::Tensor> whole;
  for (const Rows& x : rows) {
    whole.push_back(
        at::empty({x.tensor.size(0), map.tokens(), own.count * x.heads, x.tensor.size(3)},
                  x.tensor.options()));
    ForEachRange(map, rank_, whole.back(), share_of(x, own),
                 [](const at::Tensor& to, const at::Tensor& from) { Copy(from, to); });
  }
  group.Wait();
  Elements in(incoming);
  for (const Slice& slice : receives) {
    for (const at::Tensor& x : whole) {
      const at::Tensor part =
          in.Take({x.size(0), map.LocalTokens(slice.peer), x.size(2), x.size(3)});
      ForEachRange(map, slice.peer, x, part,
                   [](const at::Tensor& to, const at::Tensor& from) { Copy(from, to); });
    }
  }
  return whole;
}

std::vector<at::Tensor> HeadSwap::ToTokens(const std::vector<Rows>& rows) const {
  const ShardMap& map = shares_.map();
  int64_t width = 0;
  for (const Rows& x : rows) width += x.tensor.size(0) * x.heads * x.tensor.size(3);
  const int64_t local = map.LocalTokens(rank_);
  const HeadShares::Share own = shares_.Of(rank_);
  const auto sends = Slices(map.ranks(), rank_,
                            [&](int peer) { return map.LocalTokens(peer) * own.count * width; });
  const auto receives =
      Slices(map.ranks(), rank_, [&](int peer) { return local * shares_.Of(peer).count * width; });
  const at::Tensor outgoing = BufferOf(sends, rows[0].tensor);
  const at::Tensor incoming = BufferOf(receives, rows[0].tensor);
  Elements out(outgoing);
  for (const Slice& slice : sends) {
    for (const Rows& x : rows) {
      const at::Tensor part = out.Take(
          {x.tensor.size(0), map.LocalTokens(slice.peer), x.tensor.size(2), x.tensor.size(3)});
      ForEachRange(map, slice.peer, x.tensor, part, &Copy);
    }
  }
  GroupInFlight group(exchange_, outgoing, sends, incoming, receives);
  const auto share_of = [](const at::Tensor& x, int64_t heads, const HeadShares::Share& share) {
    return x.narrow(2, share.first * heads, share.count * heads);
  };
  std::vector<at::Tensor> parts;
  for (const Rows& x : rows) {
    parts.push_back(
        at::empty({x.tensor.size(0), local, shares_.kv_heads() * x.heads, x.tensor.size(3)},
                  x.tensor.options()));
    ForEachRange(map, rank_, x.tensor, share_of(parts.back(), x.heads, own), &Copy);
  }
  group.Wait();
  Elements in(incoming);
  for (const Slice& slice : receives) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const at::Tensor part = share_of(parts[i], rows[i].heads, shares_.Of(slice.peer));
      Copy(in.Take(part.sizes()), part);
    }
  }
  return parts;
}

}  // namespace ringmaster::attention

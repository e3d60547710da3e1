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

// What each peer's message holds, one view after the other.
std::vector<Slice> Slices(const std::vector<std::vector<at::Tensor>>& views, int rank) {
  std::vector<Slice> slices;
  int64_t at = 0;
  for (int peer = 0; peer < static_cast<int>(views.size()); ++peer) {
    int64_t elements = 0;
    for (const at::Tensor& view : views[peer]) elements += peer == rank ? 0 : view.numel();
    if (elements > 0) slices.push_back({peer, at, elements});
    at += elements;
  }
  return slices;
}

at::Tensor BufferOf(const std::vector<Slice>& slices, const at::Tensor& like) {
  return at::empty({slices.empty() ? 0 : slices.back().begin + slices.back().rows}, like.options());
}

// Rows like others, of so many tokens and key/value heads.
std::vector<HeadSwap::Rows> Like(const std::vector<HeadSwap::Rows>& rows, int64_t tokens,
                                 int64_t kv_heads) {
  std::vector<HeadSwap::Rows> result;
  for (const auto& [x, heads] : rows) {
    result.push_back(
        {at::empty({x.size(0), tokens, kv_heads * heads, x.size(3)}, x.options()), heads});
  }
  return result;
}

std::vector<at::Tensor> TensorsOf(const std::vector<HeadSwap::Rows>& rows) {
  std::vector<at::Tensor> tensors;
  for (const HeadSwap::Rows& x : rows) tensors.push_back(x.tensor);
  return tensors;
}

}  // namespace

HeadSwap::Views HeadSwap::ByHeads(const std::vector<Rows>& rows) const {
  Views views(shares_.map().ranks());
  for (int peer = 0; peer < shares_.map().ranks(); ++peer) {
    const HeadShares::Share share = shares_.Of(peer);
    for (const auto& [x, heads] : rows) {
      int64_t at = 0;
      for (const TokenRange& range : shares_.map().Ranges(rank_)) {
        views[peer].push_back(
            x.narrow(1, at, range.size()).narrow(2, share.first * heads, share.count * heads));
        at += range.size();
      }
    }
  }
  return views;
}

HeadSwap::Views HeadSwap::ByTokens(const std::vector<Rows>& rows) const {
  Views views(shares_.map().ranks());
  for (int peer = 0; peer < shares_.map().ranks(); ++peer) {
    for (const Rows& x : rows) {
      for (const TokenRange& range : shares_.map().Ranges(peer)) {
        views[peer].push_back(x.tensor.narrow(1, range.begin, range.size()));
      }
    }
  }
  return views;
}

void HeadSwap::Swap(const Views& from, const Views& to, const at::Tensor& like) const {
  const std::vector<Slice> sends = Slices(from, rank_), receives = Slices(to, rank_);
  const at::Tensor outgoing = BufferOf(sends, like), incoming = BufferOf(receives, like);
  Elements out(outgoing);
  for (const Slice& slice : sends) {
    for (const at::Tensor& view : from[slice.peer]) out.Take(view.sizes()).copy_(view);
  }
  GroupInFlight group(exchange_, outgoing, sends, incoming, receives);
  for (size_t i = 0; i < to[rank_].size(); ++i) to[rank_][i].copy_(from[rank_][i]);
  group.Wait();
  Elements in(incoming);
  for (const Slice& slice : receives) {
    for (const at::Tensor& view : to[slice.peer]) view.copy_(in.Take(view.sizes()));
  }
}

std::vector<at::Tensor> HeadSwap::ToHeads(const std::vector<Rows>& rows) const {
  const std::vector<Rows> whole = Like(rows, shares_.map().tokens(), shares_.Of(rank_).count);
  Swap(ByHeads(rows), ByTokens(whole), rows[0].tensor);
  return TensorsOf(whole);
}

std::vector<at::Tensor> HeadSwap::ToTokens(const std::vector<Rows>& rows) const {
  const std::vector<Rows> own = Like(rows, shares_.map().LocalTokens(rank_), shares_.kv_heads());
  Swap(ByTokens(rows), ByHeads(own), rows[0].tensor);
  return TensorsOf(own);
}

}  // namespace ringmaster::attention

#pragma once

#include <cstddef>
#include <cstring>
#include <string_view>
#include <type_traits>
#include <vector>

#include "ATen/core/Tensor.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/exchange/exchange.h"
#include "worker/comm/communicator.h"

// Collectives over any grouped exchange: host or device tensors, whichever the transport carries.
// All ranks of the exchange call the same collective with the same arguments in the same order.
// With one rank they do nothing. Errors are the exchange's; the tensor then holds unspecified
// values. InvalidArgument for a tensor that is not contiguous.
namespace ringmaster::worker {

// How much of a tensor travels in one group: the size of the scratch memory of a sum (twice this),
// and what must arrive within a hop deadline, however large the tensor is.
inline constexpr size_t kCollectiveChunkBytes = size_t{8} << 20;

// Replaces `tensor` (fp64, fp32, bf16 or int64; any shape, contiguous) by the sum over all ranks:
// ((x0 + x1) + x2) + ... in rank order, element by element in its own dtype, whatever arrives
// first. Computed once for each element, by one rank, and then copied, so that all ranks hold the
// same bits. `chunk_bytes` must be the same on all ranks.
absl::Status AllReduceSum(attention::GroupedExchange& exchange, const at::Tensor& tensor,
                          size_t chunk_bytes = kCollectiveChunkBytes);

// Copies `tensor` of rank `root` into `tensor` of `receivers`. Only those ranks need to call it; a
// rank that is neither returns at once. `receivers` has no duplicates; the root in it is ignored.
// `chunk_bytes` must be the same on all ranks.
absl::Status Broadcast(attention::GroupedExchange& exchange, const at::Tensor& tensor, int root,
                       absl::Span<const int> receivers, size_t chunk_bytes = kCollectiveChunkBytes);

// Collects `value` (the same number of bytes on all ranks, at most 64 KiB) of every rank,
// concatenated in rank order, in host memory. Ends with Settle(): OK also proves that every group
// started before is done. This is what carries a vote.
absl::StatusOr<std::vector<std::byte>> AllGatherBytes(Communicator& communicator,
                                                      absl::Span<const std::byte> value);

// The same for one plain value; element r is rank r's.
template <typename T>
absl::StatusOr<std::vector<T>> AllGather(Communicator& communicator, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  auto bytes = AllGatherBytes(
      communicator, absl::MakeConstSpan(reinterpret_cast<const std::byte*>(&value), sizeof(T)));
  if (!bytes.ok()) {
    return bytes.status();
  }
  std::vector<T> values(bytes->size() / sizeof(T));
  std::memcpy(values.data(), bytes->data(), bytes->size());
  return values;
}

// The stream on which ATen works for `tensor` in this thread, as Start and Wait want it; null for
// host tensors.
attention::StreamHandle CurrentStream(const at::Tensor& tensor);

}  // namespace ringmaster::worker

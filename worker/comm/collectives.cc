#include "worker/comm/collectives.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <utility>

#include "ATen/ops/empty.h"
#include "ATen/ops/from_blob.h"
#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "c10/core/impl/VirtualGuardImpl.h"

namespace ringmaster::worker {

namespace {

using attention::GroupedExchange;
using attention::ReceiveBuffer;
using attention::SendBuffer;
using attention::Ticket;

// Pieces begin on cache lines and suit vector loads.
constexpr int64_t kAlignment = 64;

absl::Status CheckContiguous(const at::Tensor& tensor) {
  if (!tensor.is_contiguous()) {
    return absl::InvalidArgumentError("a collective needs a contiguous tensor");
  }
  return absl::OkStatus();
}

std::byte* Bytes(const at::Tensor& tensor) { return static_cast<std::byte*>(tensor.data_ptr()); }

// Groups under way that use this function's memory: however it ends, that memory is not let go
// before they are.
class Underway {
 public:
  Underway(GroupedExchange& exchange, attention::StreamHandle stream)
      : exchange_(exchange), stream_(stream) {}
  ~Underway() {
    for (const Ticket ticket : tickets_) {
      exchange_.Wait(ticket, stream_).IgnoreError();  // the first error is being returned already
    }
  }
  Underway(const Underway&) = delete;
  Underway& operator=(const Underway&) = delete;

  absl::Status Start(absl::Span<const SendBuffer> sends, absl::Span<const ReceiveBuffer> receives) {
    ASSIGN_OR_RETURN(const Ticket ticket, exchange_.Start(sends, receives, stream_));
    tickets_.push_back(ticket);
    return absl::OkStatus();
  }
  // Waits for the oldest group.
  absl::Status WaitOldest() {
    const Ticket ticket = tickets_.front();
    RETURN_IF_ERROR(exchange_.Wait(ticket, stream_));
    tickets_.pop_front();
    return absl::OkStatus();
  }
  size_t size() const { return tickets_.size(); }

 private:
  GroupedExchange& exchange_;
  const attention::StreamHandle stream_;
  std::deque<Ticket> tickets_;
};

// One all-reduce: the tensor in chunks, each chunk in one piece a rank. Chunk i + 1 is scattered
// while chunk i is summed and gathered.
class RankOrderedSum {
 public:
  RankOrderedSum(GroupedExchange& exchange, const at::Tensor& tensor, size_t chunk_bytes)
      : rank_(exchange.rank()),
        size_(exchange.size()),
        flat_(tensor.view({-1})),
        element_(static_cast<int64_t>(tensor.element_size())),
        underway_(exchange, CurrentStream(tensor)) {
    const int64_t grain = std::max<int64_t>(kAlignment / element_, 1);
    const int64_t most = (flat_.numel() + size_ - 1) / size_;
    const int64_t wanted = std::min(most, static_cast<int64_t>(chunk_bytes) / (element_ * size_));
    piece_ = std::max<int64_t>((wanted + grain - 1) / grain * grain, grain);
  }

  absl::Status Run() {
    const int64_t chunks = (flat_.numel() + piece_ * size_ - 1) / (piece_ * size_);
    for (at::Tensor& scratch : scratch_) {
      scratch = at::empty({size_, piece_}, flat_.options());
    }
    RETURN_IF_ERROR(Scatter(0));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const bool more = chunk + 1 < chunks;
      if (more) {
        RETURN_IF_ERROR(Scatter(chunk + 1));
      }
      while (underway_.size() > (more ? 1 : 0)) {
        RETURN_IF_ERROR(underway_.WaitOldest());
      }
      Sum(chunk);
      RETURN_IF_ERROR(Gather(chunk));
    }
    return underway_.WaitOldest();
  }

 private:
  int64_t Begin(int64_t chunk, int rank) const {
    return std::min((chunk * size_ + rank) * piece_, flat_.numel());
  }
  int64_t Count(int64_t chunk, int rank) const {
    return std::min(piece_, flat_.numel() - Begin(chunk, rank));
  }
  size_t PieceBytes(int64_t chunk, int rank) const {
    return static_cast<size_t>(Count(chunk, rank) * element_);
  }
  std::byte* Piece(int64_t chunk, int rank) const {
    return Bytes(flat_) + Begin(chunk, rank) * element_;
  }
  at::Tensor& Scratch(int64_t chunk) { return scratch_[chunk % 2]; }

  // Everyone's share of `chunk` goes to the rank that will sum it.
  absl::Status Scatter(int64_t chunk) {
    std::vector<SendBuffer> sends;
    std::vector<ReceiveBuffer> receives;
    for (int peer = 0; peer < size_; ++peer) {
      if (peer != rank_) {
        sends.push_back(
            {.peer = peer, .data = Piece(chunk, peer), .bytes = PieceBytes(chunk, peer)});
        receives.push_back({.peer = peer,
                            .data = Bytes(Scratch(chunk)) + peer * piece_ * element_,
                            .bytes = PieceBytes(chunk, rank_)});
      }
    }
    return underway_.Start(sends, receives);
  }

  void Sum(int64_t chunk) {
    const int64_t count = Count(chunk, rank_);
    if (count == 0) {
      return;
    }
    const at::Tensor own = flat_.narrow(0, Begin(chunk, rank_), count);
    const auto share = [&](int rank) {
      return rank == rank_ ? own : Scratch(chunk).select(0, rank).narrow(0, 0, count);
    };
    const at::Tensor sum = share(0);
    for (int rank = 1; rank < size_; ++rank) {
      sum.add_(share(rank));
    }
    if (rank_ != 0) {
      own.copy_(sum);
    }
  }

  absl::Status Gather(int64_t chunk) {
    std::vector<SendBuffer> sends;
    std::vector<ReceiveBuffer> receives;
    for (int peer = 0; peer < size_; ++peer) {
      if (peer != rank_) {
        sends.push_back(
            {.peer = peer, .data = Piece(chunk, rank_), .bytes = PieceBytes(chunk, rank_)});
        receives.push_back(
            {.peer = peer, .data = Piece(chunk, peer), .bytes = PieceBytes(chunk, peer)});
      }
    }
    return underway_.Start(sends, receives);
  }

  const int rank_;
  const int size_;
  const at::Tensor flat_;
  const int64_t element_;
  // Elements of one piece.
  int64_t piece_ = 0;
  // Declared before the groups that use it.
  std::array<at::Tensor, 2> scratch_;
  Underway underway_;
};

}  // namespace

attention::StreamHandle CurrentStream(const at::Tensor& tensor) {
  if (tensor.is_cpu()) {
    return nullptr;
  }
  const c10::impl::VirtualGuardImpl device(tensor.device().type());
  return device.getStreamNativeHandle(device.getStream(tensor.device()));
}

absl::Status AllReduceSum(GroupedExchange& exchange, const at::Tensor& tensor, size_t chunk_bytes) {
  RETURN_IF_ERROR(CheckContiguous(tensor));
  if (exchange.size() == 1 || tensor.numel() == 0) {
    return absl::OkStatus();
  }
  return RankOrderedSum(exchange, tensor, chunk_bytes).Run();
}

absl::Status Broadcast(GroupedExchange& exchange, const at::Tensor& tensor, int root,
                       absl::Span<const int> receivers, size_t chunk_bytes) {
  RETURN_IF_ERROR(CheckContiguous(tensor));
  const bool gives = exchange.rank() == root;
  if (!gives && std::find(receivers.begin(), receivers.end(), exchange.rank()) == receivers.end()) {
    return absl::OkStatus();
  }
  Underway underway(exchange, CurrentStream(tensor));
  for (size_t begin = 0; begin < tensor.nbytes(); begin += chunk_bytes) {
    std::byte* const data = Bytes(tensor) + begin;
    const size_t bytes = std::min(chunk_bytes, tensor.nbytes() - begin);
    std::vector<SendBuffer> sends;
    std::vector<ReceiveBuffer> receives;
    if (gives) {
      for (const int receiver : receivers) {
        if (receiver != root) {
          sends.push_back({.peer = receiver, .data = data, .bytes = bytes});
        }
      }
    } else {
      receives.push_back({.peer = root, .data = data, .bytes = bytes});
    }
    RETURN_IF_ERROR(underway.Start(sends, receives));
    if (underway.size() > 1) {
      RETURN_IF_ERROR(underway.WaitOldest());
    }
  }
  return underway.size() > 0 ? underway.WaitOldest() : absl::OkStatus();
}

absl::StatusOr<std::vector<std::byte>> AllGatherBytes(Communicator& communicator,
                                                      absl::Span<const std::byte> value) {
  GroupedExchange& exchange = communicator.world();
  const auto bytes = static_cast<int64_t>(value.size());
  std::vector<std::byte> all(value.size() * exchange.size());
  const auto on_host = at::TensorOptions(at::kByte);
  const at::Tensor host = at::from_blob(all.data(), {exchange.size(), bytes}, on_host);
  std::copy(value.begin(), value.end(), all.begin() + exchange.rank() * bytes);
  const at::Tensor table =
      communicator.cuda_device() < 0
          ? host
          : host.to(
                at::Device(at::kCUDA, static_cast<at::DeviceIndex>(communicator.cuda_device())));
  std::vector<SendBuffer> sends;
  std::vector<ReceiveBuffer> receives;
  for (int peer = 0; peer < exchange.size(); ++peer) {
    if (peer != exchange.rank()) {
      sends.push_back(
          {.peer = peer, .data = Bytes(table) + exchange.rank() * bytes, .bytes = value.size()});
      receives.push_back(
          {.peer = peer, .data = Bytes(table) + peer * bytes, .bytes = value.size()});
    }
  }
  {
    Underway underway(exchange, CurrentStream(table));
    RETURN_IF_ERROR(underway.Start(sends, receives));
    RETURN_IF_ERROR(underway.WaitOldest());
  }
  // Only now may the host wait for the device: nothing queued before can be stuck any more.
  RETURN_IF_ERROR(communicator.Settle());
  if (!table.is_cpu()) {
    host.copy_(table);
  }
  return all;
}

}  // namespace ringmaster::worker

#include "attention/exchange/group_in_flight.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include "attention/output.h"

namespace ringmaster::attention {
namespace {

StreamHandle CurrentStream(at::Device device) {
  return device.is_cpu()
             ? nullptr
             : c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

// Bytes of one row of a buffer.
size_t RowBytes(const at::Tensor& buffer) { return buffer.stride(0) * buffer.element_size(); }

}  // namespace

GroupInFlight::GroupInFlight(GroupedExchange* exchange, const at::Tensor& outgoing,
                             const std::vector<Slice>& sends, const at::Tensor& incoming,
                             const std::vector<Slice>& receives)
    : exchange_(exchange), outgoing_(outgoing), incoming_(incoming) {
  std::vector<SendBuffer> send_buffers;
  std::vector<ReceiveBuffer> receive_buffers;
  if (outgoing.numel() > 0) {
    const char* data = static_cast<const char*>(outgoing.const_data_ptr());
    for (const Slice& slice : sends) {
      send_buffers.push_back(
          {slice.peer, data + slice.begin * RowBytes(outgoing), slice.rows * RowBytes(outgoing)});
    }
  }
  if (incoming.numel() > 0) {
    char* data = static_cast<char*>(incoming.mutable_data_ptr());
    for (const Slice& slice : receives) {
      receive_buffers.push_back(
          {slice.peer, data + slice.begin * RowBytes(incoming), slice.rows * RowBytes(incoming)});
    }
  }
  if (send_buffers.empty() && receive_buffers.empty()) {
    return;
  }
  absl::StatusOr<Ticket> ticket =
      exchange->Start(send_buffers, receive_buffers, CurrentStream(incoming.device()));
  if (!ticket.ok()) {
    throw ExchangeError(ticket.status());
  }
  ticket_ = *ticket;
  pending_ = true;
}

GroupInFlight::~GroupInFlight() {
  if (pending_) {
    // The error that is on its way is the one to report.
    exchange_->Wait(ticket_, CurrentStream(incoming_.device())).IgnoreError();
  }
}

void GroupInFlight::Wait() {
  if (!pending_) {
    return;
  }
  pending_ = false;
  const absl::Status status = exchange_->Wait(ticket_, CurrentStream(incoming_.device()));
  if (!status.ok()) {
    throw ExchangeError(status);
  }
}

}  // namespace ringmaster::attention

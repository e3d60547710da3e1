#include "worker/comm/nccl_communicator.h"

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "worker/comm/cuda_plugin.h"

namespace ringmaster::worker {

namespace {

class NcclCommunicator final : public Communicator, private attention::GroupedExchange {
 public:
  NcclCommunicator(const CommunicatorOptions& options, const RingmasterCudaApi& api,
                   RingmasterNcclRing* ring, std::string address)
      : options_(options), api_(api), ring_(ring), address_(std::move(address)) {}
  ~NcclCommunicator() override { api_.NcclDestroy(ring_); }

  const std::string& address() const override { return address_; }
  int cuda_device() const override { return options_.device_index; }

  absl::Status Connect(absl::Span<const std::string> addresses, absl::Duration deadline) override {
    std::vector<const char*> texts;
    for (const std::string& address : addresses) {
      texts.push_back(address.c_str());
    }
    return PluginStatus(
        api_.NcclConnect(ring_, texts.data(), texts.size(), absl::ToDoubleSeconds(deadline)));
  }

  attention::GroupedExchange& world() override { return *this; }
  absl::Status Settle() override { return PluginStatus(api_.NcclSettle(ring_)); }
  absl::Status Close() override { return PluginStatus(api_.NcclClose(ring_)); }
  void Abort(const std::string& reason) override { api_.NcclAbort(ring_, reason.c_str()); }
  absl::Status AwaitReleased(absl::Duration deadline) override {
    return PluginStatus(api_.NcclAwaitReleased(ring_, absl::ToDoubleSeconds(deadline)));
  }

 private:
  int rank() const override { return options_.rank; }
  int size() const override { return options_.world_size; }
  uint64_t sent_bytes() const override { return sent_bytes_; }

  absl::StatusOr<attention::Ticket> Start(absl::Span<const attention::SendBuffer> sends,
                                          absl::Span<const attention::ReceiveBuffer> receives,
                                          attention::StreamHandle producer) override {
    std::vector<RingmasterNcclMessage> out;
    std::vector<RingmasterNcclMessage> in;
    uint64_t bytes = 0;
    for (const attention::SendBuffer& send : sends) {
      out.push_back({send.peer, const_cast<void*>(send.data), send.bytes});
      bytes += send.bytes;
    }
    for (const attention::ReceiveBuffer& receive : receives) {
      in.push_back({receive.peer, receive.data, receive.bytes});
    }
    for (const auto* messages : {&out, &in}) {
      for (const RingmasterNcclMessage& message : *messages) {
        if (message.peer < 0 || message.peer >= size() || message.peer == rank() ||
            (message.data == nullptr && message.bytes > 0)) {
          return absl::InvalidArgumentError(absl::StrCat(
              "ring generation ", options_.generation, " rank ", options_.rank,
              ": a message of a group names no other rank of ", size(), ", or has no buffer"));
        }
      }
    }
    attention::Ticket ticket;
    RETURN_IF_ERROR(PluginStatus(
        api_.NcclStart(ring_, out.data(), out.size(), in.data(), in.size(), producer, &ticket.id)));
    sent_bytes_ += bytes;
    return ticket;
  }

  absl::Status Wait(attention::Ticket ticket, attention::StreamHandle consumer) override {
    return PluginStatus(api_.NcclWait(ring_, ticket.id, consumer));
  }

  const CommunicatorOptions options_;
  const RingmasterCudaApi& api_;
  RingmasterNcclRing* const ring_;
  const std::string address_;
  std::atomic<uint64_t> sent_bytes_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> OpenNcclCommunicator(
    const CommunicatorOptions& options) {
  ASSIGN_OR_RETURN(const CudaPlugin* plugin, CudaPlugin::Open());
  const RingmasterNcclOptions raw = {
      .generation = options.generation,
      .rank = options.rank,
      .world_size = options.world_size,
      .device = options.device_index,
      .hop_deadline_seconds = absl::ToDoubleSeconds(options.hop_deadline),
  };
  RingmasterNcclRing* ring = nullptr;
  char address[512] = {};
  RETURN_IF_ERROR(PluginStatus(plugin->api().NcclOpen(&raw, &ring, address)));
  return std::make_unique<NcclCommunicator>(options, plugin->api(), ring, address);
}

}  // namespace ringmaster::worker

#pragma once

#include <ucp/api/ucp.h>

#include <cstdint>
#include <functional>
#include <list>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "worker/comm/communicator.h"
#include "worker/comm/group_ledger.h"
#include "worker/comm/ucx_address.h"
#include "worker/comm/ucx_worker.h"

namespace ringmaster::worker {

// The UCX side of one communicator: a listener, one endpoint a peer, and the requests under way.
// Between ranks a and b < a, a connects and b accepts, so that there is one connection a pair. A
// message's tag is (sender, sequence number of the pair), which keeps the order of each pair
// whatever UCX does. Belongs to the executor thread; what happens is written into the ledger.
class UcxEndpoints {
 public:
  // All borrowed.
  UcxEndpoints(const CommunicatorOptions& options, GroupLedger& ledger, UcxWorker& worker);
  UcxEndpoints(const UcxEndpoints&) = delete;
  UcxEndpoints& operator=(const UcxEndpoints&) = delete;

  // What a rank tells the listeners that it connects to.
  static uint64_t ClientId(const CommunicatorOptions& options, int rank);

  // Binds options.host and returns the port. Connections are accepted from now on.
  absl::StatusOr<int> Listen();
  // Connects to the ranks below this one.
  void Connect(const std::vector<UcxAddress>& addresses);
  // Everybody is here: whoever dials from now on is a stranger, and what strangers send can make
  // UCX end the process.
  void StopListening();
  // Posts all messages of a group. A peer that has answered a `farewell` may go without being
  // missed.
  void Exchange(uint64_t group, const std::vector<attention::SendBuffer>& sends,
                const std::vector<attention::ReceiveBuffer>& receives, bool farewell);
  // Cancels and closes everything by force; first call counts. When all peers have said farewell,
  // what was sent is pushed out before, so that they get it before they see the connection end.
  void TearDown();
  const bool& closing() const { return closing_; }
  // After TearDown: nothing is under way any more, or it took too long and only destroying the
  // worker ends it.
  bool TornDown() const;

 private:
  struct Peer {
    UcxEndpoints* owner = nullptr;
    int rank = 0;
    ucp_ep_h endpoint = nullptr;
    uint32_t sent = 0;
    uint32_t received = 0;
    bool said_farewell = false;
    // Sends that were started before the peer connected.
    std::vector<std::function<void()>> waiting;
  };
  struct Request {
    UcxEndpoints* owner = nullptr;
    Peer* peer = nullptr;
    uint64_t group = 0;
    int message = 0;
    size_t bytes = 0;
    bool receive = false;
    bool farewell = false;
    void* handle = nullptr;
    // The outcome, when UCX told it before the handle.
    bool called = false;
    ucs_status_t status = UCS_OK;
    size_t length = 0;
    std::list<Request>::iterator self;
  };

  void Accept(ucp_conn_request_h connection);
  void Open(Peer& peer, ucp_ep_params_t params);
  void Lost(const Peer& peer, ucs_status_t status);
  Request& Add(Request request);
  void Send(Request& request, const void* data, uint64_t tag);
  void Receive(Request& request, void* data, uint64_t tag);
  void Posted(Request& request, ucs_status_ptr_t handle);
  void Called(Request& request, ucs_status_t status, size_t length);
  void Finish(Request& request, ucs_status_t status, size_t bytes);
  void Flush();
  void OneFlushLess();
  void CloseAll();

  const CommunicatorOptions& options_;
  GroupLedger& ledger_;
  UcxWorker& worker_;
  std::vector<Peer> peers_;
  ucp_listener_h listener_ = nullptr;
  // Addresses must stay: UCX hands them back.
  std::list<Request> requests_;
  int flushes_ = 0;
  int closes_ = 0;
  bool closing_ = false;
  bool closed_ = false;
  absl::Time give_up_ = absl::InfiniteFuture();
};

}  // namespace ringmaster::worker

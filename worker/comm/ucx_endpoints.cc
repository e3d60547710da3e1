#include "worker/comm/ucx_endpoints.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "spdlog/spdlog.h"
#include "worker/comm/accused_ranks.h"
#include "worker/comm/ucx_status.h"

namespace ringmaster::worker {

namespace {

// How long cancelled requests may take before the worker is destroyed under them.
constexpr absl::Duration kCancelDeadline = absl::Seconds(3);
constexpr int kRankBits = 20;

uint64_t Tag(int sender, uint32_t sequence) {
  return static_cast<uint64_t>(sender) << 32 | sequence;
}

const sockaddr* SocketAddressOf(const sockaddr_storage& storage) {
  return reinterpret_cast<const sockaddr*>(&storage);
}

}  // namespace

UcxEndpoints::UcxEndpoints(const CommunicatorOptions& options, GroupLedger& ledger,
                           UcxWorker& worker)
    : options_(options), ledger_(ledger), worker_(worker), peers_(options.world_size) {
  for (int rank = 0; rank < options.world_size; ++rank) {
    peers_[rank].owner = this;
    peers_[rank].rank = rank;
  }
}

uint64_t UcxEndpoints::ClientId(const CommunicatorOptions& options, int rank) {
  return static_cast<uint64_t>(options.generation) << kRankBits | static_cast<uint64_t>(rank);
}

absl::StatusOr<int> UcxEndpoints::Listen() {
  ASSIGN_OR_RETURN(const sockaddr_storage any_port, SocketAddress(options_.host, 0));
  const ucp_listener_params_t params = {
      .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
      .sockaddr = {.addr = SocketAddressOf(any_port), .addrlen = sizeof(any_port)},
      .conn_handler = {.cb =
                           [](ucp_conn_request_h connection, void* self) {
                             static_cast<UcxEndpoints*>(self)->Accept(connection);
                           },
                       .arg = this},
  };
  RETURN_IF_ERROR(UcxStatus(ucp_listener_create(worker_.handle(), &params, &listener_),
                            absl::StrCat(ledger_.who(), ": listening on ", options_.host)));
  ucp_listener_attr_t attributes = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
  RETURN_IF_ERROR(UcxStatus(ucp_listener_query(listener_, &attributes),
                            absl::StrCat(ledger_.who(), ": asking for the port")));
  return SocketPort(attributes.sockaddr);
}

void UcxEndpoints::Connect(const std::vector<UcxAddress>& addresses) {
  if (closing_) {
    return;
  }
  // By the one interface that UCX may use, wherever the routes lead.
  const auto own = SocketAddress(options_.host, 0);
  for (int rank = 0; rank < options_.rank; ++rank) {
    const auto socket = SocketAddress(addresses[rank].host, addresses[rank].port);
    if (!socket.ok()) {
      ledger_.Fail(socket.status());
      return;
    }
    ucp_ep_params_t params = {};
    params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR |
                        UCP_EP_PARAM_FIELD_LOCAL_SOCK_ADDR;
    params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER | UCP_EP_PARAMS_FLAGS_SEND_CLIENT_ID;
    params.sockaddr = {.addr = SocketAddressOf(*socket), .addrlen = sizeof(*socket)};
    params.local_sockaddr = {.addr = SocketAddressOf(*own), .addrlen = sizeof(*own)};
    Open(peers_[rank], params);
  }
}

void UcxEndpoints::StopListening() {
  if (listener_ != nullptr) {
    ucp_listener_destroy(std::exchange(listener_, nullptr));
  }
}

void UcxEndpoints::Accept(ucp_conn_request_h connection) {
  ucp_conn_request_attr_t attributes = {.field_mask = UCP_CONN_REQUEST_ATTR_FIELD_CLIENT_ID};
  const ucs_status_t asked = ucp_conn_request_query(connection, &attributes);
  const int rank = static_cast<int>(attributes.client_id & ((1 << kRankBits) - 1));
  const bool expected =
      asked == UCS_OK && !closing_ && rank > options_.rank && rank < options_.world_size &&
      attributes.client_id == ClientId(options_, rank) && peers_[rank].endpoint == nullptr;
  if (!expected) {
    SPDLOG_WARN("{}: refused a connection of rank {} of generation {}", ledger_.who(), rank,
                attributes.client_id >> kRankBits);
    ucp_listener_reject(listener_, connection);
    return;
  }
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = connection;
  Open(peers_[rank], params);
}

void UcxEndpoints::Open(Peer& peer, ucp_ep_params_t params) {
  params.field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {.cb =
                            [](void* arg, ucp_ep_h, ucs_status_t status) {
                              const auto* lost = static_cast<const Peer*>(arg);
                              lost->owner->Lost(*lost, status);
                            },
                        .arg = &peer};
  const ucs_status_t status = ucp_ep_create(worker_.handle(), &params, &peer.endpoint);
  if (status != UCS_OK) {
    peer.endpoint = nullptr;
    Lost(peer, status);
    return;
  }
  for (const auto& send : std::exchange(peer.waiting, {})) {
    send();
  }
}

void UcxEndpoints::Lost(const Peer& peer, ucs_status_t status) {
  if (closing_ || peer.said_farewell) {
    return;
  }
  absl::Status error =
      UcxStatus(status, absl::StrCat(ledger_.who(), ": rank ", peer.rank, " is gone"));
  if (absl::IsAborted(error)) {  // requests of a lost endpoint are cancelled by UCX
    error = absl::UnavailableError(error.message());
  }
  ledger_.Fail(Accuse(error, {peer.rank}));
}

UcxEndpoints::Request& UcxEndpoints::Add(Request request) {
  request.owner = this;
  requests_.push_front(std::move(request));
  requests_.front().self = requests_.begin();
  return requests_.front();
}

void UcxEndpoints::Exchange(uint64_t group, const std::vector<attention::SendBuffer>& sends,
                            const std::vector<attention::ReceiveBuffer>& receives, bool farewell) {
  if (closing_) {
    return;
  }
  // Receives first: what is expected needs no copy.
  int message = static_cast<int>(sends.size());
  for (const attention::ReceiveBuffer& receive : receives) {
    if (receive.bytes > 0) {
      Peer& peer = peers_[receive.peer];
      Receive(Add({.peer = &peer,
                   .group = group,
                   .message = message,
                   .bytes = receive.bytes,
                   .receive = true,
                   .farewell = farewell}),
              receive.data, Tag(peer.rank, peer.received++));
    }
    ++message;
  }
  message = 0;
  for (const attention::SendBuffer& send : sends) {
    if (send.bytes > 0) {
      Peer& peer = peers_[send.peer];
      Request request = {.peer = &peer, .group = group, .message = message, .bytes = send.bytes};
      auto post = [this, request, data = send.data, tag = Tag(options_.rank, peer.sent++)] {
        Send(Add(request), data, tag);
      };
      if (peer.endpoint != nullptr) {
        post();
      } else {
        peer.waiting.push_back(std::move(post));
      }
    }
    ++message;
  }
}

void UcxEndpoints::Send(Request& request, const void* data, uint64_t tag) {
  ucp_request_param_t params = {};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  params.cb.send = [](void*, ucs_status_t status, void* arg) {
    auto* done = static_cast<Request*>(arg);
    done->owner->Called(*done, status, done->bytes);
  };
  params.user_data = &request;
  Posted(request, ucp_tag_send_nbx(request.peer->endpoint, data, request.bytes, tag, &params));
}

void UcxEndpoints::Receive(Request& request, void* data, uint64_t tag) {
  ucp_request_param_t params = {};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  params.cb.recv = [](void*, ucs_status_t status, const ucp_tag_recv_info_t* info, void* arg) {
    auto* done = static_cast<Request*>(arg);
    done->owner->Called(*done, status, info->length);
  };
  params.user_data = &request;
  Posted(request,
         ucp_tag_recv_nbx(worker_.handle(), data, request.bytes, tag, ~uint64_t{0}, &params));
}

void UcxEndpoints::Posted(Request& request, ucs_status_ptr_t handle) {
  if (UCS_PTR_IS_ERR(handle)) {
    Finish(request, UCS_PTR_STATUS(handle), 0);
    return;
  }
  request.handle = handle;
  if (request.called) {
    Finish(request, request.status, request.length);
  }
}

void UcxEndpoints::Called(Request& request, ucs_status_t status, size_t length) {
  if (request.handle != nullptr) {
    Finish(request, status, length);
    return;
  }
  // UCX may call back before the call that posts the request has returned its handle.
  request.called = true;
  request.status = status;
  request.length = length;
}

void UcxEndpoints::Finish(Request& request, ucs_status_t status, size_t bytes) {
  const Request done = request;
  requests_.erase(done.self);
  if (done.handle != nullptr) {
    ucp_request_free(done.handle);
  }
  if (status == UCS_OK && bytes == done.bytes) {
    done.peer->said_farewell = done.peer->said_farewell || done.farewell;
    ledger_.Done(done.group, done.message);
  } else if (closing_) {
    return;
  } else if (status == UCS_OK || status == UCS_ERR_MESSAGE_TRUNCATED) {
    ledger_.Fail(absl::FailedPreconditionError(
        absl::StrCat(ledger_.who(), ": rank ", done.peer->rank, " sent ", bytes, " bytes where ",
                     done.bytes, " were expected; the ranks disagree about the plan")));
  } else {
    Lost(*done.peer, status);
  }
}

void UcxEndpoints::Flush() {
  flushes_ = 1;  // this call, so that the end is not reached in the middle
  ucp_request_param_t params = {};
  params.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.user_data = this;
  params.cb.send = [](void* handle, ucs_status_t, void* arg) {
    ucp_request_free(handle);
    static_cast<UcxEndpoints*>(arg)->OneFlushLess();
  };
  for (Peer& peer : peers_) {
    if (peer.endpoint != nullptr && UCS_PTR_IS_PTR(ucp_ep_flush_nbx(peer.endpoint, &params))) {
      ++flushes_;
    }
  }
  OneFlushLess();
}

void UcxEndpoints::OneFlushLess() {
  if (--flushes_ == 0) {
    // Not at once: an endpoint must not be closed in a callback.
    worker_.Post([this] { CloseAll(); });
  }
}

void UcxEndpoints::TearDown() {
  if (closing_) {
    return;
  }
  closing_ = true;
  give_up_ = SteadyNow() + kCancelDeadline;
  StopListening();
  const bool orderly = std::all_of(peers_.begin(), peers_.end(), [this](const Peer& peer) {
    return peer.rank == options_.rank || peer.said_farewell;
  });
  if (orderly) {
    Flush();
  } else {
    CloseAll();
  }
}

void UcxEndpoints::CloseAll() {
  closed_ = true;
  // Cancelling may call back at once and change the list.
  std::vector<void*> receives;
  for (const Request& request : requests_) {
    if (request.receive) {
      receives.push_back(request.handle);
    }
  }
  for (void* handle : receives) {
    ucp_request_cancel(worker_.handle(), handle);
  }
  ucp_request_param_t params = {};
  params.op_attr_mask =
      UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  params.flags = UCP_EP_CLOSE_FLAG_FORCE;
  params.user_data = this;
  params.cb.send = [](void* handle, ucs_status_t, void* arg) {
    ucp_request_free(handle);
    --static_cast<UcxEndpoints*>(arg)->closes_;
  };
  for (Peer& peer : peers_) {
    peer.waiting.clear();
    if (peer.endpoint != nullptr && UCS_PTR_IS_PTR(ucp_ep_close_nbx(peer.endpoint, &params))) {
      ++closes_;
    }
    peer.endpoint = nullptr;
  }
}

bool UcxEndpoints::TornDown() const {
  if (!closing_) {
    return false;
  }
  if (closed_ && requests_.empty() && closes_ == 0) {
    return true;
  }
  if (SteadyNow() < give_up_) {
    return false;
  }
  SPDLOG_WARN("{}: {} requests and {} endpoints of UCX did not end within {}", ledger_.who(),
              requests_.size(), closes_, absl::FormatDuration(kCancelDeadline));
  return true;
}

}  // namespace ringmaster::worker

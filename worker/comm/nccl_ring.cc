#include "worker/comm/nccl_ring.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status_macros.h"
#include "base/steady_now.h"
#include "worker/comm/nccl_status.h"
#include "worker/comm/ring_hash.h"

namespace ringmaster::worker {

namespace {

// Flushing after everyone's farewell; only politeness.
constexpr absl::Duration kFinalizeDeadline = absl::Seconds(5);
constexpr auto kPollInterval = std::chrono::microseconds(20);
constexpr int kGreetingWords = 3;

std::string VersionText(int code) {
  return absl::StrCat(code / 10000, ".", code / 100 % 100, ".", code % 100);
}

std::string AddressOf(int64_t generation, int rank, const std::string& id) {
  return absl::StrCat("nccl/", NCCL_VERSION_CODE, "/", generation, "/", rank, "/", id);
}

// What a worker that forms ring after ring wants of NCCL; the user's environment goes before it.
void SetDefaults() {
  setenv("NCCL_NVLS_ENABLE", "0", /*replace=*/0);  // multicast state outlives an abort
  setenv("NCCL_RAS_ENABLE", "0",
         /*replace=*/0);  // a fixed port, and links between processes that come and go
}

}  // namespace

absl::StatusOr<LoadedNccl> FindNccl() {
  SetDefaults();
  int code = 0;
  RETURN_IF_ERROR(NcclStatus(ncclGetVersion(&code), "asking NCCL for its version", nullptr));
  Dl_info library = {};
  const bool found = dladdr(reinterpret_cast<const void*>(&ncclGetVersion), &library) != 0;
  LoadedNccl loaded = {.version = VersionText(code),
                       .path = found && library.dli_fname != nullptr ? library.dli_fname : "?"};
  if (code != NCCL_VERSION_CODE) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL ", loaded.version, " was loaded from ", loaded.path, ", but ",
                     VersionText(NCCL_VERSION_CODE),
                     " is what this was built for; LD_LIBRARY_PATH may name another one"));
  }
  return loaded;
}

NcclRing::NcclRing(const RingmasterNcclOptions& options)
    : options_(options),
      who_(absl::StrCat("ring generation ", options.generation, " rank ", options.rank)),
      hop_deadline_(absl::Seconds(options.hop_deadline_seconds)) {}

NcclRing::~NcclRing() {
  if (watch_.joinable()) {
    watch_.join();
  }
  if (release_.joinable()) {
    release_.join();
  }
  static_cast<void>(cudaFreeHost(greetings_));  // not before: Greet reads it without a lock
}

absl::StatusOr<std::unique_ptr<NcclRing>> NcclRing::Open(const RingmasterNcclOptions& options) {
  RETURN_IF_ERROR(FindNccl().status());
  auto ring = std::unique_ptr<NcclRing>(new NcclRing(options));
  std::string id = "-";
  if (options.rank == 0) {
    ncclUniqueId made;
    RETURN_IF_ERROR(NcclStatus(ncclGetUniqueId(&made), ring->Say("making an NCCL id"), nullptr));
    id = absl::BytesToHexString(absl::string_view(made.internal, sizeof(made.internal)));
  }
  ring->address_ = AddressOf(options.generation, options.rank, id);
  if (absl::Status prepared = ring->PrepareDevice(); !prepared.ok()) {
    Discard(std::move(ring));
    return prepared;
  }
  return ring;
}

absl::Status NcclRing::PrepareDevice() {
  const std::lock_guard lock(calls_);
  const std::string what = Say(absl::StrCat("preparing CUDA device ", options_.device));
  RETURN_IF_ERROR(CudaStatus(cudaSetDevice(options_.device), what));
  int least = 0;
  int greatest = 0;
  RETURN_IF_ERROR(CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), what));
  RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), what));
  for (auto* events : {&produced_, &done_}) {
    for (cudaEvent_t& event : *events) {
      RETURN_IF_ERROR(CudaStatus(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), what));
    }
  }
  const size_t bytes = sizeof(int64_t) * kGreetingWords * options_.world_size;
  RETURN_IF_ERROR(CudaStatus(cudaMallocHost(reinterpret_cast<void**>(&greetings_), bytes), what));
  return CudaStatus(cudaMalloc(reinterpret_cast<void**>(&device_greetings_), bytes), what);
}

absl::StatusOr<ncclUniqueId> NcclRing::CheckAddresses(
    const std::vector<std::string>& addresses) const {
  std::string id;
  if (static_cast<int>(addresses.size()) != options_.world_size) {
    return absl::InvalidArgumentError(
        Say(absl::StrCat(addresses.size(), " addresses for ", options_.world_size, " ranks")));
  }
  for (int rank = 0; rank < options_.world_size; ++rank) {
    const std::vector<std::string> parts = absl::StrSplit(addresses[rank], '/');
    if (parts.size() != 5 || parts[0] != "nccl") {
      return absl::InvalidArgumentError(
          Say(absl::StrCat("not the address of an NCCL rank: ", addresses[rank])));
    }
    if (addresses[rank] != AddressOf(options_.generation, rank, parts[4])) {
      return absl::FailedPreconditionError(
          Say(absl::StrCat("the address of rank ", rank, " is that of rank ", parts[3],
                           " of generation ", parts[2], " with NCCL ", parts[1])));
    }
    if (rank == 0) {
      id = absl::HexStringToBytes(parts[4]);
    }
  }
  ncclUniqueId result;
  if (id.size() != sizeof(result.internal) || addresses[options_.rank] != address_) {
    return absl::InvalidArgumentError(
        Say("the addresses hold no NCCL id, or not this rank's own address"));
  }
  std::memcpy(result.internal, id.data(), id.size());
  return result;
}

absl::Status NcclRing::Connect(const std::vector<std::string>& addresses, absl::Duration deadline) {
  const absl::Time end = SteadyNow() + deadline;
  const absl::StatusOr<ncclUniqueId> id = CheckAddresses(addresses);
  if (!id.ok()) {
    return Fail(id.status());
  }
  {
    const std::lock_guard lock(calls_);
    RETURN_IF_ERROR(error());
    if (absl::Status set = CudaStatus(cudaSetDevice(options_.device), Say("choosing the device"));
        !set.ok()) {
      return Fail(set);
    }
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t started =
        ncclCommInitRankConfig(&comm_, options_.world_size, *id, options_.rank, &config);
    if (absl::Status status = NcclStatus(started, Say("connecting"), nullptr); !status.ok()) {
      return Fail(status);
    }
  }
  RETURN_IF_ERROR(Poll(end, "connecting to all ranks", [] { return cudaSuccess; }));
  // Connections are made at first use: now, within this deadline, not in the first step.
  RETURN_IF_ERROR(Greet(RingHash(addresses), end));
  watch_ = std::thread([this] { Watch(); });
  return absl::OkStatus();
}

absl::Status NcclRing::Greet(uint64_t ring_hash, absl::Time deadline) {
  const auto slot = [&](int64_t* base, int rank) { return base + rank * kGreetingWords; };
  const int64_t own[kGreetingWords] = {options_.generation, options_.rank,
                                       static_cast<int64_t>(ring_hash)};
  std::vector<RingmasterNcclMessage> sends;
  std::vector<RingmasterNcclMessage> receives;
  for (int peer = 0; peer < options_.world_size; ++peer) {
    if (peer != options_.rank) {
      sends.push_back({peer, slot(device_greetings_, options_.rank), sizeof(own)});
      receives.push_back({peer, slot(device_greetings_, peer), sizeof(own)});
    }
  }
  {
    const std::lock_guard lock(calls_);
    RETURN_IF_ERROR(error());
    std::memcpy(slot(greetings_, options_.rank), own, sizeof(own));
    if (absl::Status copied = CudaStatus(
            cudaMemcpyAsync(slot(device_greetings_, options_.rank), slot(greetings_, options_.rank),
                            sizeof(own), cudaMemcpyDefault, stream_),
            Say("greeting"));
        !copied.ok()) {
      return Fail(copied);
    }
  }
  RETURN_IF_ERROR(Launch(sends, receives, deadline));
  {
    const std::lock_guard lock(calls_);
    RETURN_IF_ERROR(error());
    absl::Status copied =
        CudaStatus(cudaMemcpyAsync(greetings_, device_greetings_, sizeof(own) * options_.world_size,
                                   cudaMemcpyDefault, stream_),
                   Say("greeting"));
    copied.Update(CudaStatus(cudaEventRecord(produced_[0], stream_), Say("greeting")));
    if (!copied.ok()) {
      return Fail(copied);
    }
  }
  RETURN_IF_ERROR(
      Poll(deadline, "the greeting of all ranks", [this] { return cudaEventQuery(produced_[0]); }));
  for (int peer = 0; peer < options_.world_size; ++peer) {
    const int64_t* heard = slot(greetings_, peer);
    if (heard[0] != own[0] || heard[1] != peer || heard[2] != own[2]) {
      return Fail(absl::FailedPreconditionError(
          Say(absl::StrCat("who answered as rank ", peer, " is rank ", heard[1], " of generation ",
                           heard[0], " or of another forming"))));
    }
  }
  return absl::OkStatus();
}

absl::Status NcclRing::Launch(absl::Span<const RingmasterNcclMessage> sends,
                              absl::Span<const RingmasterNcclMessage> receives,
                              absl::Time deadline) {
  {
    const std::lock_guard lock(calls_);
    RETURN_IF_ERROR(error());
    ncclResult_t result = ncclGroupStart();
    const auto keep = [&](ncclResult_t next) {
      if (result == ncclSuccess || result == ncclInProgress) {
        result = next;
      }
    };
    for (const RingmasterNcclMessage& send : sends) {
      if (send.bytes > 0) {
        keep(ncclSend(send.data, send.bytes, ncclInt8, send.peer, comm_, stream_));
      }
    }
    for (const RingmasterNcclMessage& receive : receives) {
      if (receive.bytes > 0) {
        keep(ncclRecv(receive.data, receive.bytes, ncclInt8, receive.peer, comm_, stream_));
      }
    }
    keep(ncclGroupEnd());
    if (absl::Status status = NcclStatus(result, Say("starting a group"), comm_); !status.ok()) {
      return Fail(status);
    }
  }
  // Nothing may be put on the stream before NCCL has.
  return Poll(deadline, "starting a group", [] { return cudaSuccess; });
}

absl::Status NcclRing::Poll(absl::Time deadline, const std::string& what,
                            const std::function<cudaError_t()>& done) {
  while (true) {
    bool finished = false;
    {
      const std::lock_guard lock(calls_);
      RETURN_IF_ERROR(error());
      ncclResult_t state = ncclInProgress;
      ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
      if (asked == ncclSuccess && state == ncclSuccess) {
        const cudaError_t event = done();
        finished = event == cudaSuccess;
        if (!finished && event != cudaErrorNotReady) {
          return Fail(CudaStatus(event, Say(what)));
        }
      } else if (asked != ncclSuccess || state != ncclInProgress) {
        return Fail(NcclStatus(asked != ncclSuccess ? asked : state, Say(what), comm_));
      }
    }
    // Only now: an abort makes a kernel end as if it had succeeded.
    RETURN_IF_ERROR(error());
    if (finished) {
      return absl::OkStatus();
    }
    if (SteadyNow() > deadline) {
      return Fail(absl::DeadlineExceededError(
          Say(absl::StrCat(what, " took too long; aborting, a new ring will form"))));
    }
    std::this_thread::sleep_for(kPollInterval);
  }
}

absl::StatusOr<uint64_t> NcclRing::Start(absl::Span<const RingmasterNcclMessage> sends,
                                         absl::Span<const RingmasterNcclMessage> receives,
                                         cudaStream_t producer) {
  {
    const std::lock_guard lock(calls_);
    RETURN_IF_ERROR(error());
    const cudaEvent_t produced = produced_[(last_ticket_ + 1) % kEvents];
    absl::Status ordered = CudaStatus(cudaSetDevice(options_.device), Say("choosing the device"));
    ordered.Update(CudaStatus(cudaEventRecord(produced, producer), Say("starting a group")));
    ordered.Update(CudaStatus(cudaStreamWaitEvent(stream_, produced, 0), Say("starting a group")));
    if (!ordered.ok()) {
      return Fail(ordered);
    }
  }
  RETURN_IF_ERROR(Launch(sends, receives, SteadyNow() + hop_deadline_));
  const std::lock_guard lock(calls_);
  RETURN_IF_ERROR(error());
  const uint64_t ticket = ++last_ticket_;
  if (absl::Status recorded =
          CudaStatus(cudaEventRecord(done_[ticket % kEvents], stream_), Say("starting a group"));
      !recorded.ok()) {
    return Fail(recorded);
  }
  return ticket;
}

absl::Status NcclRing::Wait(uint64_t ticket, cudaStream_t consumer) {
  const std::lock_guard lock(calls_);
  RETURN_IF_ERROR(error());
  absl::Status ordered = CudaStatus(cudaSetDevice(options_.device), Say("choosing the device"));
  ordered.Update(CudaStatus(cudaStreamWaitEvent(consumer, done_[ticket % kEvents], 0),
                            Say("waiting for a group")));
  return ordered.ok() ? ordered : Fail(ordered);
}

absl::Status NcclRing::Settle() {
  RETURN_IF_ERROR(error());
  // The watch counts the hop deadline: what the groups still wait for may be a long computation.
  return Poll(absl::InfiniteFuture(), "an exchange", [this] {
    return last_ticket_ == 0 ? cudaSuccess : cudaEventQuery(done_[last_ticket_ % kEvents]);
  });
}

absl::Status NcclRing::Close() {
  RETURN_IF_ERROR(Settle());
  RETURN_IF_ERROR(Greet(/*ring_hash=*/0, SteadyNow() + hop_deadline_));
  // Everyone is here. What follows flushes the last sends; a peer that goes first is no failure any
  // more.
  ncclResult_t state = ncclInProgress;
  const absl::Time deadline = SteadyNow() + kFinalizeDeadline;
  {
    const std::lock_guard lock(calls_);
    RETURN_IF_ERROR(error());
    state = ncclCommFinalize(comm_);
  }
  while (state == ncclInProgress && SteadyNow() < deadline && error().ok()) {
    std::this_thread::sleep_for(kPollInterval);
    const std::lock_guard lock(calls_);
    if (comm_ == nullptr || ncclCommGetAsyncError(comm_, &state) != ncclSuccess) {
      break;
    }
  }
  {
    const std::lock_guard lock(calls_);
    finalized_ = state == ncclSuccess;
  }
  static_cast<void>(Fail(absl::FailedPreconditionError(Say("the ring is closed"))));
  return absl::OkStatus();
}

}  // namespace ringmaster::worker

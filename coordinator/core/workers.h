#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core/state.h"

// Worker processes: who is there, under which incarnation and lease. Memory only; a restarted
// coordinator hears it all again.
namespace ringmaster::coordinator {

// The first report of a stream: attaches the worker, or turns away a dead incarnation and one whose
// name another process has that is alive.
void OnHello(State& state, uint64_t stream, const v1::WorkerReport& report);
void OnHeartbeat(State& state, Worker& worker, const v1::Heartbeat& heartbeat);
void OnGoodbye(State& state, Worker& worker);
void OnStreamClosed(State& state, uint64_t stream);
// A supervisor's proof.
absl::StatusOr<v1::ReportFaultResponse> OnWorkerExited(State& state,
                                                       const v1::ReportFaultRequest& request);

// Ends the stream of a process that is to exit, whatever it does; `code` is the ErrorInfo's reason.
void TellDie(State& state, uint64_t stream, const std::string& code, const std::string& reason);

// A sign of life.
void RenewLease(State& state, Worker& worker);
void OnLeaseTimer(State& state, Worker& worker);
// The stream broke some time ago and did not come back.
void OnSuspectTimer(State& state, Worker& worker);

// A member of a stored ring, not heard of in this life of the coordinator.
void AddUnseenWorker(State& state, const Job& job, int rank);

// A cordoned worker that is not heard of; nothing when it is a member of a stored ring.
void AddAbsentWorker(State& state, const std::string& name);

v1::Worker::State StateOf(const State& state, const Worker& worker);
v1::Worker ToProtoWorker(const State& state, const Worker& worker);
// The worker of a request's field `name`. Errors: InvalidArgument, NotFound.
absl::StatusOr<Worker*> NamedWorker(State& state, const std::string& name);
absl::StatusOr<v1::Worker> GetWorker(State& state, const v1::GetWorkerRequest& request);
absl::StatusOr<v1::ListWorkersResponse> ListWorkers(State& state,
                                                    const v1::ListWorkersRequest& request);

}  // namespace ringmaster::coordinator

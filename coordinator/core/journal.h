#pragma once

#include <string>

#include "coordinator/core/state.h"

// What leaves the core: rows, watch events, directives. Everything collects in State::out and goes
// out at the end of the call.
namespace ringmaster::coordinator {

// The job's row and its watchers.
void Store(State& state, const Job& job);
// Watchers only.
void Show(State& state, const Job& job);
// Progress: watchers, and the row when it was not stored for a while.
void StoreProgress(State& state, Job& job);

void Put(State& state, Table table, const std::string& key,
         const google::protobuf::Message& record);
void Erase(State& state, Table table, const std::string& key);

// Does nothing for a worker without a stream: it hears what it needs when it re-attaches.
void Tell(State& state, const Worker& worker, v1::Directive directive);
void EndStream(State& state, uint64_t stream, absl::Status status);

// Of the member with this rank, for directives.
v1::RingRef RefOf(const Job& job, int rank);

// Turns what was marked into rows and changes; hands the call's output over.
Output TakeOutput(State& state);

}  // namespace ringmaster::coordinator

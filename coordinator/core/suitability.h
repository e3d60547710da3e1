#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "ringmaster/store/records.pb.h"
#include "ringmaster/v1/cluster_service.pb.h"

namespace ringmaster::coordinator {

// What a job asks of each of its workers.
struct Requirement {
  v1::Device device = v1::DEVICE_UNSPECIFIED;
  int32_t threads = 1;
  // What no worker can do without: the state it holds, not its activations, which depend on chance.
  int64_t memory_bytes = 0;
  // Fixed at the job's first placement; empty before.
  std::string cpu_capability;
  int workers = 1;
  int ring_size = 1;
  // Names of workers that the job passes over at present.
  std::set<std::string> unfit;

  auto operator<=>(const Requirement&) const = default;
};

Requirement RequirementOf(const store::JobRecord& record);

// Empty when `hardware` will do, else why not: "another device", "4 threads, not 8".
std::string Misfit(const Requirement& requirement, const v1::Hardware& hardware);

// "ucx" or "nccl"; the transport of a device.
std::string TransportOf(v1::Device device);

// Ranks of one ring must be equal in this: device, a GPU's name or the CPU's code path, transport
// version, and the build of the worker, since what ranks send each other is fixed by nothing else.
std::string KindOf(const v1::Hardware& hardware, const std::string& build);

}  // namespace ringmaster::coordinator

#include "coordinator/core/suitability.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/core/estimate.h"

namespace ringmaster::coordinator {
namespace {

// "ucx/1.13" for "ucx"; empty when the worker does not have it.
std::string TransportVersion(const v1::Hardware& hardware, const std::string& transport) {
  for (const std::string& offered : hardware.transports()) {
    if (offered == transport || absl::StartsWith(offered, transport + "/")) return offered;
  }
  return "";
}

}  // namespace

std::string TransportOf(v1::Device device) { return device == v1::CUDA ? "nccl" : "ucx"; }

Requirement RequirementOf(const store::JobRecord& record) {
  const v1::TrainingJobSpec& spec = record.job().spec();
  return {.device = spec.resources().device(),
          .threads = spec.resources().threads(),
          .memory_bytes = StateBytes(spec),
          .cpu_capability = record.cpu_capability(),
          .workers = spec.parallel().ring_size() * spec.parallel().replicas(),
          .ring_size = spec.parallel().ring_size()};
}

std::string Misfit(const Requirement& requirement, const v1::Hardware& hardware) {
  if (requirement.device != v1::DEVICE_UNSPECIFIED && hardware.device() != requirement.device) {
    return "another device";
  }
  // Zero: the worker does not say.
  if (hardware.threads() > 0 && hardware.threads() < requirement.threads) {
    return absl::StrFormat("%d threads, not %d", hardware.threads(), requirement.threads);
  }
  if (hardware.memory_bytes() > 0 && hardware.memory_bytes() < requirement.memory_bytes) {
    return absl::StrFormat("%d bytes of memory, not %d", hardware.memory_bytes(),
                           requirement.memory_bytes);
  }
  if (TransportVersion(hardware, TransportOf(hardware.device())).empty()) {
    return absl::StrCat("no ", TransportOf(hardware.device()), " transport");
  }
  if (hardware.device() == v1::CPU && !requirement.cpu_capability.empty() &&
      hardware.cpu_capability() != requirement.cpu_capability) {
    return absl::StrCat("CPU code path ", hardware.cpu_capability(), ", not ",
                        requirement.cpu_capability);
  }
  return "";
}

std::string KindOf(const v1::Hardware& hardware, const std::string& build) {
  const bool cuda = hardware.device() == v1::CUDA;
  // How a device sums depends on how many multiprocessors it has.
  return absl::StrCat(cuda ? 0 : 1, "\n", cuda ? hardware.device_name() : hardware.cpu_capability(),
                      "\n", TransportVersion(hardware, TransportOf(hardware.device())), "\n",
                      build);
}

}  // namespace ringmaster::coordinator

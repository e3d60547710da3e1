#include "worker/comm/cuda_plugin.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "spdlog/spdlog.h"

namespace ringmaster::worker {

namespace {

constexpr char kFile[] = "libringmaster_cuda.so";

std::vector<std::filesystem::path> Places() {
  if (const char* given = std::getenv("RINGMASTER_CUDA_PLUGIN"); given != nullptr) {
    return {given};
  }
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto folder = program.parent_path();
  // The install tree and the build tree.
  return {folder / kFile, folder.parent_path() / "lib" / kFile};
}

}  // namespace

absl::Status PluginStatus(const RingmasterCudaResult& result) {
  return absl::Status(static_cast<absl::StatusCode>(result.code), result.message);
}

absl::StatusOr<const CudaPlugin*> CudaPlugin::Open() {
  // Left alone at the end: its library's threads may still run.
  static const auto* const plugin = new absl::StatusOr<CudaPlugin>(Load());
  if (!plugin->ok()) {
    return plugin->status();
  }
  return &**plugin;
}

absl::StatusOr<CudaPlugin> CudaPlugin::Load() {
  std::filesystem::path found;
  std::string looked;
  for (const auto& place : Places()) {
    absl::StrAppend(&looked, looked.empty() ? "" : ", ", place.string());
    std::error_code error;
    if (std::filesystem::exists(place, error)) {
      found = place;
      break;
    }
  }
  if (found.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no ", kFile, " (looked for ", looked,
                     "); it comes with a build of the preset cuda"));
  }
  void* library = dlopen(found.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot load ", found.string(), ": ", dlerror()));
  }
  const auto entry = reinterpret_cast<RingmasterCudaEntry>(dlsym(library, RINGMASTER_CUDA_ENTRY));
  const RingmasterCudaApi* api = entry != nullptr ? entry() : nullptr;
  if (api == nullptr || api->abi_version != RINGMASTER_CUDA_ABI_VERSION) {
    return absl::FailedPreconditionError(absl::StrCat(
        found.string(), " belongs to another build of the worker: interface ",
        api == nullptr ? 0 : api->abi_version, ", wanted ", RINGMASTER_CUDA_ABI_VERSION));
  }
  char version[32] = {};
  char path[512] = {};
  RETURN_IF_ERROR(PluginStatus(api->NcclVersion(version, path)));
  SPDLOG_INFO("loaded {} with NCCL {} from {}", found.string(), version, path);
  return CudaPlugin(api, version);
}

absl::StatusOr<int> CudaPlugin::CountDevices() const {
  int count = 0;
  RETURN_IF_ERROR(PluginStatus(api_->CountDevices(&count)));
  return count;
}

absl::StatusOr<CudaDevice> CudaPlugin::Describe(int device) const {
  RingmasterCudaDevice raw = {};
  RETURN_IF_ERROR(PluginStatus(api_->Describe(device, &raw)));
  return CudaDevice{.name = raw.name,
                    .total_bytes = raw.total_bytes,
                    .free_bytes = raw.free_bytes,
                    .major = raw.major,
                    .minor = raw.minor};
}

absl::Status CudaPlugin::SetDevice(int device) const {
  return PluginStatus(api_->SetDevice(device));
}

absl::StatusOr<RingmasterCudaMemory> CudaPlugin::Memory(int device) const {
  RingmasterCudaMemory memory = {};
  RETURN_IF_ERROR(PluginStatus(api_->Memory(device, &memory)));
  return memory;
}

absl::Status CudaPlugin::ResetPeakMemory(int device) const {
  return PluginStatus(api_->ResetPeakMemory(device));
}

absl::Status CudaPlugin::EmptyCache() const { return PluginStatus(api_->EmptyCache()); }

}  // namespace ringmaster::worker

#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/core/events.h"

namespace ringmaster::coordinator {

// Reads a checkpoint's manifest.json (docs/files.md) and checks that its shards exist with the
// stated sizes; their contents are checked by whoever loads them. `path` is the checkpoint's
// directory or the file itself, absolute. Blocks on the disk. Errors: NotFound (no such file),
// InvalidArgument (not absolute, or damaged: says how).
absl::StatusOr<ManifestFile> ReadManifest(const std::string& path);

}  // namespace ringmaster::coordinator

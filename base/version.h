#pragma once

namespace ringmaster {

// The release, for example "0.1.0". Static storage.
const char* Version();

// The commit the build was configured from, 12 hexadecimal digits, or "unknown" outside a git checkout. Static storage.
const char* Commit();

}  // namespace ringmaster

#pragma once

#include <functional>
#include <string>

namespace ringmaster::coordinator {

// A disk that fails on demand, registered with SQLite as "faulty" while it lives: the default VFS,
// with a hook before each write and flush. One at a time.
class FaultyVfs {
 public:
  // Returns the SQLite result to fail with, or SQLITE_OK (0) to let it through. `path` is the
  // file's.
  using Hook = std::function<int(const std::string& path)>;

  static constexpr char kName[] = "faulty";

  FaultyVfs();
  ~FaultyVfs();

  Hook on_write;
  Hook on_sync;
};

}  // namespace ringmaster::coordinator

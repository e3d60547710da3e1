#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/testing/temporary_directory.h"

namespace ringmaster::worker {

// Files in a directory of their own, which goes away with the object.
class CorpusFiles {
 public:
  std::string Write(const std::string& name, const std::string& content) const {
    const std::filesystem::path path = std::filesystem::path(root()) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }
  const std::string& root() const { return directory_.path(); }

 private:
  const TemporaryDirectory directory_;
};

}  // namespace ringmaster::worker

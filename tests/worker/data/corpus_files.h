#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace ringmaster::worker {

// A directory of its own that goes away with the object.
class CorpusFiles {
 public:
  CorpusFiles() {
    std::string pattern = testing::TempDir() + "/corpus-XXXXXX";
    root_ = mkdtemp(pattern.data());
  }
  ~CorpusFiles() { std::filesystem::remove_all(root_); }

  std::string Write(const std::string& name, const std::string& content) const {
    const std::filesystem::path path = std::filesystem::path(root_) / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << content;
    return path.string();
  }
  const std::string& root() const { return root_; }

 private:
  std::string root_;
};

}  // namespace ringmaster::worker

#include "coordinator/records/file_reader.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/testing/temporary_directory.h"

namespace ringmaster::coordinator {
namespace {

TEST(FileReaderTest, ReadsRegularFilesOnly) {
  const TemporaryDirectory temporary;
  const std::string path = temporary.path() + "/file";
  std::ofstream(path) << "12345";
  FileReader reader(path);
  EXPECT_TRUE(reader.is_open());
  EXPECT_EQ(reader.Size(), 5);
  EXPECT_EQ(reader.Read(1, 10), "2345");

  const std::string fifo = temporary.path() + "/fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_FALSE(FileReader(fifo).is_open());  // It would wait for a writer.
  const std::string link = temporary.path() + "/link";
  ASSERT_EQ(symlink(path.c_str(), link.c_str()), 0);
  EXPECT_FALSE(FileReader(link).is_open());
  EXPECT_FALSE(FileReader(temporary.path()).is_open());
}

}  // namespace
}  // namespace ringmaster::coordinator

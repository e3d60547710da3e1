#include "worker/data/byte_corpus.h"

#include <sys/stat.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/data/corpus_files.h"

namespace ringmaster::worker {
namespace {

using ::testing::HasSubstr;

std::string Text(const ByteCorpus& corpus, int64_t begin, int64_t count) {
  std::string text(count, '?');
  const absl::Status status =
      corpus.Read(begin, absl::MakeSpan(reinterpret_cast<uint8_t*>(text.data()), text.size()));
  return status.ok() ? text : status.ToString();
}

ByteCorpus MustOpen(const std::vector<std::string>& patterns) {
  absl::StatusOr<ByteCorpus> corpus = ByteCorpus::Open(patterns);
  EXPECT_TRUE(corpus.ok()) << corpus.status();
  return *std::move(corpus);
}

TEST(ByteCorpusTest, OrdersFilesByPathAndCountsEachOnce) {
  const CorpusFiles files;
  files.Write("b.txt", "BBB");
  files.Write("a.txt", "AA");
  files.Write("sub/c.txt", "C");
  files.Write(".hidden", "no");
  files.Write(".git/d.txt", "no");
  files.Write("empty.txt", "");
  const ByteCorpus corpus = MustOpen({files.root(), files.root() + "/*.txt"});
  EXPECT_EQ(corpus.size(), 6);
  EXPECT_EQ(Text(corpus, 0, 6), "AABBBC");
  EXPECT_EQ(Text(corpus, 1, 4), "ABBB");
  EXPECT_EQ(Text(corpus, 5, 1), "C");
  EXPECT_EQ(Text(corpus, 6, 0), "");
}

TEST(ByteCorpusTest, RefusesReadsBeyondTheEnd) {
  const CorpusFiles files;
  const ByteCorpus corpus = MustOpen({files.Write("a", "12345")});
  uint8_t bytes[4];
  EXPECT_EQ(corpus.Read(2, absl::MakeSpan(bytes)).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(corpus.Read(-1, absl::MakeSpan(bytes)).code(), absl::StatusCode::kOutOfRange);
}

TEST(ByteCorpusTest, GivesUpBetweenFiles) {
  const CorpusFiles files;
  const std::vector<std::string> paths = {files.Write("a", "AA"), files.Write("b", "BB")};
  // Twice while they are looked for.
  int asked = 0;
  const auto corpus = ByteCorpus::Open(paths, [&asked] { return ++asked == 4; });
  EXPECT_EQ(corpus.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(asked, 4);
}

// There may be millions of names on a slow file system.
TEST(ByteCorpusTest, GivesUpWhileItLooksForFiles) {
  const CorpusFiles files;
  for (const char* name : {"a", "b", "c"}) {
    files.Write(name, "x");
  }
  // Found only by looking further, or at what is found.
  ASSERT_EQ(symlink("nowhere", (files.root() + "/link").c_str()), 0);
  for (const std::string& pattern : {files.root(), files.root() + "/*"}) {
    int asked = 0;
    const auto corpus = ByteCorpus::Open({{pattern}}, [&asked] { return ++asked == 2; });
    EXPECT_EQ(corpus.status().code(), absl::StatusCode::kCancelled) << corpus.status();
    EXPECT_EQ(asked, 2);
  }
}

TEST(ByteCorpusTest, NamesWhatCannotBeRead) {
  const CorpusFiles files;
  EXPECT_EQ(ByteCorpus::Open({{files.root() + "/*.md"}}).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_THAT(ByteCorpus::Open({{files.root() + "/*.md"}}).status().ToString(), HasSubstr("*.md"));
  EXPECT_EQ(ByteCorpus::Open({{files.Write("empty", "")}}).status().code(),
            absl::StatusCode::kInvalidArgument);

  const CorpusFiles linked;
  linked.Write("a", "AA");
  ASSERT_EQ(symlink("nowhere", (linked.root() + "/link").c_str()), 0);
  EXPECT_THAT(ByteCorpus::Open({{linked.root()}}).status().ToString(),
              HasSubstr(linked.root() + "/link"));

  // Nobody writes: whoever waits for its bytes waits for ever.
  const std::string pipe = files.root() + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const absl::Status no_file = ByteCorpus::Open({{pipe}}).status();
  EXPECT_EQ(no_file.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(no_file.ToString(), HasSubstr(pipe + ": it is no regular file"));

  const std::string path = files.Write("shrinks", "0123456789");
  const ByteCorpus corpus = MustOpen({path});
  ASSERT_EQ(truncate(path.c_str(), 4), 0);
  EXPECT_EQ(Text(corpus, 0, 4), "0123");
  uint8_t bytes[4];
  const absl::Status status = corpus.Read(3, absl::MakeSpan(bytes));
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.ToString(), HasSubstr(path));
  ASSERT_EQ(unlink(path.c_str()), 0);
  EXPECT_EQ(corpus.Read(0, absl::MakeSpan(bytes)).code(), absl::StatusCode::kDataLoss);
}

TEST(ByteCorpusTest, FingerprintTellsDataApartButNotWhereItIsMounted) {
  const CorpusFiles one;
  const CorpusFiles other;
  const std::string big(200000, 'x');
  const uint64_t base = MustOpen({one.Write("a", "one"), one.Write("b", big)}).fingerprint();
  EXPECT_EQ(MustOpen({other.Write("a", "one"), other.Write("b", big)}).fingerprint(), base);
  EXPECT_NE(MustOpen({other.Write("a", "two"), other.Write("b", big)}).fingerprint(), base);
  EXPECT_NE(MustOpen({other.Write("a", "one"), other.Write("b", big + "x")}).fingerprint(), base);
}

}  // namespace
}  // namespace ringmaster::worker

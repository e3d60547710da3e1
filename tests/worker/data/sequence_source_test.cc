#include "worker/data/sequence_source.h"

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "attention/plan/shard_map.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/data/corpus_files.h"

namespace ringmaster::worker {
namespace {

using attention::ShardMap;
using ::testing::HasSubstr;

// 1000 bytes, byte i being i mod 251.
class SequenceSourceTest : public ::testing::Test {
 protected:
  SequenceSourceTest() {
    std::string text(1000, '\0');
    for (size_t i = 0; i < text.size(); ++i) {
      text[i] = static_cast<char>(i % 251);
    }
    const std::string path = files_.Write("text", text);
    corpus_ = std::make_shared<const ByteCorpus>(*ByteCorpus::Open({{path}}));
  }

  SequenceSource Source(const SequenceSource::Options& options) const {
    absl::StatusOr<SequenceSource> source = SequenceSource::Create(corpus_, options);
    EXPECT_TRUE(source.ok()) << source.status();
    return *std::move(source);
  }

  CorpusFiles files_;
  std::shared_ptr<const ByteCorpus> corpus_;
};

TEST_F(SequenceSourceTest, VisitsEveryWindowOnceAPassInAnotherOrderEachPass) {
  const SequenceSource source = Source(
      {.sequence_length = 64, .validation_fraction = 0.1, .seed = 7, .sequences_per_step = 2});
  const int64_t windows = (900 - 1) / 64;  // 14: 7 steps a pass
  std::vector<std::vector<int64_t>> passes;
  std::set<int64_t> shifts;
  for (int64_t pass = 0; pass < 8; ++pass) {
    std::vector<int64_t> order;
    std::set<int64_t> seen;
    for (int64_t step = pass * 7; step < (pass + 1) * 7; ++step) {
      for (int64_t index = 0; index < 2; ++index) {
        const int64_t offset = source.TrainingOffset(step, index);
        EXPECT_GE(offset, 0);
        EXPECT_LE(offset + 64 + 1, 900) << "reads into the validation part";
        order.push_back(offset / 64);
        seen.insert(offset / 64);
        shifts.insert(offset % 64);
      }
    }
    EXPECT_EQ(static_cast<int64_t>(seen.size()), windows);
    passes.push_back(order);
  }
  EXPECT_NE(passes[0], passes[1]);
  EXPECT_GT(shifts.size(), 1u);
}

TEST_F(SequenceSourceTest, OrderDependsOnTheSeedOnly) {
  const SequenceSource::Options options = {.sequence_length = 10, .seed = 1};
  const SequenceSource one = Source(options);
  const SequenceSource same = Source(options);
  SequenceSource::Options changed = options;
  changed.seed = 2;
  const SequenceSource other = Source(changed);
  int differing = 0;
  for (int64_t step = 0; step < 200; ++step) {
    EXPECT_EQ(one.TrainingOffset(step, 0), same.TrainingOffset(step, 0));
    differing += one.TrainingOffset(step, 0) != other.TrainingOffset(step, 0) ? 1 : 0;
  }
  EXPECT_GT(differing, 150);
}

TEST_F(SequenceSourceTest, ShardsTogetherHoldTheSequenceWithLabelsShifted) {
  const int64_t tokens = 101;
  const SequenceSource source = Source({.sequence_length = tokens, .validation_fraction = 0.2});
  const int64_t offset = source.TrainingOffset(3, 0);
  for (const int ranks : {1, 2, 3, 7, 150}) {
    const ShardMap map = ShardMap::Contiguous(tokens, ranks, 1);
    for (int rank = 0; rank < ranks; ++rank) {
      const absl::StatusOr<ShardBytes> bytes = source.Read(offset, map.Ranges(rank));
      ASSERT_TRUE(bytes.ok()) << bytes.status();
      const std::vector<int64_t> positions = map.Positions(rank);
      ASSERT_EQ(bytes->tokens.size(), positions.size());
      ASSERT_EQ(bytes->labels.size(), positions.size());
      for (size_t i = 0; i < positions.size(); ++i) {
        EXPECT_EQ(bytes->tokens[i], (offset + positions[i]) % 251);
        EXPECT_EQ(bytes->labels[i], (offset + positions[i] + 1) % 251);
      }
    }
  }
}

TEST_F(SequenceSourceTest, ValidationSequencesLieInTheHeldOutEnd) {
  const SequenceSource source = Source({.sequence_length = 50, .validation_fraction = 0.2});
  EXPECT_TRUE(source.has_validation());
  for (const int64_t count : {1, 2, 3, 8}) {
    for (int64_t index = 0; index < count; ++index) {
      const int64_t offset = source.ValidationOffset(index, count);
      EXPECT_GE(offset, 800);
      EXPECT_LE(offset + 50 + 1, 1000);
    }
  }
  EXPECT_FALSE(Source({.sequence_length = 50}).has_validation());
}

TEST_F(SequenceSourceTest, SaysHowMuchDataIsMissing) {
  const absl::Status training = SequenceSource::Create(corpus_, {.sequence_length = 1000}).status();
  EXPECT_EQ(training.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(training.ToString(), HasSubstr("at least 1001"));
  EXPECT_TRUE(SequenceSource::Create(corpus_, {.sequence_length = 999}).ok());
  const absl::Status validation =
      SequenceSource::Create(corpus_, {.sequence_length = 100, .validation_fraction = 0.1})
          .status();
  EXPECT_THAT(validation.ToString(), HasSubstr("validation part of the data has 100 bytes"));
}

}  // namespace
}  // namespace ringmaster::worker

#include "models/generation.h"

#include <ATen/ops/full.h>
#include <ATen/ops/resize.h>
#include <ATen/ops/tensor.h>

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/models/small_models.h"

namespace ringmaster::models {
namespace {

std::vector<int64_t> AsVector(const at::Tensor& tokens) {
  const auto* data = tokens.const_data_ptr<int64_t>();
  return {data, data + tokens.numel()};
}

// After a prompt of the first `prompt` tokens, and then each one up to `most`, the logits are the
// row of `expected` that belongs to it.
void ExpectLogits(Generator& generator, const std::vector<int64_t>& fed, int64_t prompt,
                  int64_t most, const at::Tensor& expected) {
  at::Tensor logits = generator.Prefill(absl::MakeConstSpan(fed).first(prompt));
  for (int64_t t = prompt; t < most; ++t) {
    ASSERT_LT(logits.sub(expected[t - 1]).abs().max().item<double>(), 1e-10)
        << "after token " << t << ", prompt of " << prompt;
    logits = generator.Next(fed[t]);
  }
  EXPECT_EQ(generator.tokens(), most);
}

// Token by token, after prompts of several lengths, the logits are those of the whole sequence; the
// sequence is longer than every segment, so that caches wrap.
TEST(GeneratorTest, AgreesWithTheWholeSequenceAtEveryToken) {
  const int64_t count = 140;
  for (const Positions positions : {Positions::kRotary, Positions::kXpos, Positions::kNone}) {
    for (const auto mode : {attention::OffsetMode::kPaper, attention::OffsetMode::kTorchscale}) {
      LongNetConfig config = SmallConfig();
      config.positions = positions;
      config.attention.offset_mode = mode;
      config.attention.branches = {{4, 1}, {16, 2}, {32, 5}, {32, 5}, {64, 64}};
      const TestModel m(config);
      const at::Tensor tokens = RandomTokens(1, count, 256, 9);
      const std::vector<int64_t> fed = AsVector(tokens);
      const at::Tensor expected =
          m.model.Logits(m.parameters, WholeSequence(m, count), tokens).select(0, 0);
      for (const int64_t prompt : {1, 90}) {
        Generator generator(m.model, m.parameters, count, count);
        ExpectLogits(generator, fed, prompt, count, expected);
      }
    }
  }
}

// Branches that leave positions uncovered, and a segment far longer than what is generated.
TEST(GeneratorTest, HandlesUncoveredPositionsAndUnreachedSegments) {
  LongNetConfig config = SmallConfig();
  config.attention.branches = {{12, 6}, {int64_t{1} << 40, 7}};
  const TestModel m(config);
  const at::Tensor tokens = RandomTokens(1, 40, 256, 10);
  const std::vector<int64_t> fed = AsVector(tokens);
  const at::Tensor expected =
      m.model.Logits(m.parameters, WholeSequence(m, 40), tokens).select(0, 0);
  Generator generator(m.model, m.parameters, 40, 40);
  ExpectLogits(generator, fed, 1, 40, expected);
  EXPECT_THROW(generator.Next(0), c10::Error) << "more than max_tokens";
}

// The logits of a sequence as long as the mask is, from the first part of it: one mask a head, and
// windows that look back over a part of the cache alone.
TEST(GeneratorTest, AgreesWithTheWholeSequenceOfAMask) {
  const int64_t count = 700;
  using Kind = attention::BlockPattern::Kind;
  for (const Kind kind : {Kind::kLocalWindow, Kind::kRandom, Kind::kGlobalLocal}) {
    LongNetConfig config = SmallConfig();
    config.attention.branches.clear();
    config.blocks = {.kind = kind, .density = 0.4, .block_size = 64, .seed = 3};
    if (kind == Kind::kRandom) config.blocks->heads = config.heads;
    const TestModel m(config);
    const at::Tensor tokens = RandomTokens(1, count, 256, 11);
    const std::vector<int64_t> fed = AsVector(tokens);
    const at::Tensor expected =
        m.model.Logits(m.parameters, WholeSequence(m, count), tokens).select(0, 0);
    for (const int64_t prompt : {1, 333}) {
      const int64_t most = prompt + 190;
      Generator generator(m.model, m.parameters, most, count);
      ExpectLogits(generator, fed, prompt, most, expected);
    }
    EXPECT_THROW(Generator(m.model, m.parameters, count + 1, count), c10::Error);
  }
}

// Caches hold the token that failed: a second try would be silently wrong.
TEST(GeneratorTest, IsOfNoUseAfterAFailureHalfWay) {
  const TestModel m(SmallConfig());
  for (const bool prefill : {true, false}) {
    std::vector<at::Tensor> parameters = m.parameters;
    at::Tensor& last = parameters.back();
    last = last.clone();
    Generator generator(m.model, parameters, 40, 40);
    const auto feed = [&] { prefill ? generator.Prefill({1, 2, 3}) : generator.Next(4); };
    if (!prefill) generator.Prefill({1, 2, 3});
    const int64_t before = generator.tokens();
    EXPECT_THROW(prefill ? generator.Prefill({1, 256}) : generator.Next(256), c10::Error)
        << "not in the vocabulary: before any layer, nothing is lost";
    last.resize_({1});
    EXPECT_THROW(feed(), c10::Error);
    EXPECT_EQ(generator.tokens(), before);
    last.resize_(m.parameters.back().sizes());
    last.copy_(m.parameters.back());
    try {
      feed();
      ADD_FAILURE() << "a second try was taken";
    } catch (const c10::ValueError& e) {
      EXPECT_THAT(e.what_without_backtrace(), ::testing::HasSubstr("of no use since"));
    }
  }
}

TEST(SampleTokenTest, DrawsByProbability) {
  const at::Tensor logits = at::tensor({0.0, std::log(3.0), -1e9, std::log(4.0)});
  EXPECT_EQ(SampleToken(logits, 0, 0.1), 3);
  EXPECT_EQ(SampleToken(logits, 1, 0), 0);
  EXPECT_EQ(SampleToken(logits, 1, 0.124), 0);
  EXPECT_EQ(SampleToken(logits, 1, 0.126), 1);
  EXPECT_EQ(SampleToken(logits, 1, 0.499), 1);
  EXPECT_EQ(SampleToken(logits, 1, 0.501), 3);
  EXPECT_EQ(SampleToken(logits, 1, 0.9999999), 3);
  EXPECT_EQ(SampleToken(logits, 0.01, 0.5), 3);
}

TEST(SampleTokenTest, ATinyTemperatureIsTheLikeliest) {
  EXPECT_EQ(SampleToken(at::tensor({0.0, 1.0, 2.0}), 1e-310, 0.5), 2);
}

}  // namespace
}  // namespace ringmaster::models

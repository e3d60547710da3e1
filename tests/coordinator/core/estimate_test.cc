#include "coordinator/core/estimate.h"

#include <gtest/gtest.h>

#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

TEST(EstimateTest, AddsUpAndWarns) {
  v1::EstimateTrainingJobRequest request;
  *request.mutable_spec() = CoreDriver::Spec(2);
  request.mutable_spec()->mutable_model()->set_preset("longnet-12x768");
  request.mutable_spec()->mutable_data()->set_sequence_length(32768);
  const auto estimate = EstimateJob(request);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_NEAR(static_cast<double>(estimate->parameters()), 85.5e6, 0.5e6);
  const v1::MemoryEstimate& memory = estimate->memory();
  EXPECT_EQ(memory.total_bytes(), memory.parameter_bytes() + memory.gradient_bytes() +
                                      memory.optimizer_bytes() + memory.activation_bytes() +
                                      memory.exchange_bytes());
  EXPECT_GT(memory.exchange_bytes(), 0);
  EXPECT_GT(estimate->exchanged_bytes_per_step(), 0);
  ASSERT_EQ(estimate->shard_tokens_size(), 2);
  EXPECT_EQ(estimate->shard_tokens(0), 16384);
  ASSERT_GT(estimate->layouts_size(), 1);
  EXPECT_NE(estimate->layouts(0).find("chosen: "), std::string::npos);
  // More than 6 operations per parameter and token, and less than dense attention would add.
  EXPECT_GT(estimate->step_flops(), 6.0 * 85e6 * 32768);
  EXPECT_LT(estimate->step_flops(), 12.0 * 85e6 * 32768);

  request.mutable_spec()->mutable_data()->set_sequence_length(3);
  request.mutable_spec()->mutable_parallel()->set_ring_size(8);
  const auto tiny = EstimateJob(request);
  ASSERT_TRUE(tiny.ok());
  ASSERT_FALSE(tiny->warnings().empty());
  EXPECT_NE(tiny->warnings(0).find("hold no token"), std::string::npos);
}

// 128K tokens of 4 layers, 32 heads of 64: of CUDA, in bf16.
v1::EstimateTrainingJobRequest Long(int ring) {
  v1::EstimateTrainingJobRequest request;
  v1::TrainingJobSpec& spec = *request.mutable_spec();
  spec = CoreDriver::Spec(ring);
  spec.mutable_resources()->set_device(v1::CUDA);
  spec.mutable_model()->clear_preset();
  spec.mutable_model()->set_layers(4);
  spec.mutable_model()->set_dim(2048);
  spec.mutable_model()->set_heads(32);
  spec.mutable_model()->set_kv_heads(32);
  spec.mutable_data()->set_sequence_length(131072);
  spec.clear_attention();
  spec.mutable_attention()->add_segment_lengths(2048);
  spec.mutable_attention()->add_dilation_rates(1);
  spec.mutable_attention()->add_segment_lengths(131072);
  spec.mutable_attention()->add_dilation_rates(2);
  return request;
}

// Where tokens are swapped for heads, one of four of 128 ranks computes attention, and other ranks
// of 32 do as much as any.
TEST(EstimateTest, OperationsDoNotDependOnTheRing) {
  const double alone = EstimateJob(Long(1))->step_flops();
  for (const int ring : {32, 64, 128}) {
    const auto estimate = EstimateJob(Long(ring));
    ASSERT_TRUE(estimate.ok()) << estimate.status();
    EXPECT_EQ(estimate->layouts(0).find("chosen: tokens swapped for heads"), 0)
        << ring << ": " << estimate->layouts(0);
    EXPECT_NEAR(estimate->step_flops() / alone, 1, 1e-9) << ring << ": " << estimate->layouts(0);
  }
}

// Each of eight ranks has two of 16 query heads, and their key/value head, of the whole sequence.
TEST(EstimateTest, CountsHeadsOfTheWholeSequenceInEachLayer) {
  v1::EstimateTrainingJobRequest request = Long(8);
  v1::TrainingJobSpec& spec = *request.mutable_spec();
  spec.mutable_model()->set_dim(1024);
  spec.mutable_model()->set_heads(16);
  spec.mutable_model()->set_kv_heads(8);
  spec.mutable_attention()->set_dilation_rates(1, 1);
  const auto estimate = EstimateJob(request);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  ASSERT_EQ(estimate->layouts(0).find("chosen: tokens swapped for heads"), 0)
      << estimate->layouts(0);
  const int64_t row = 64 * 2, tokens = 131072;
  const int64_t local = tokens / 8 * (16 + 8 + 8) * row;
  const int64_t saved = tokens * ((2 + 1 + 1 + 2) * row + 2 * 4) - local;
  const int64_t transient = tokens * (2 + 2 * (2 + 1 + 1)) * row + local;
  EXPECT_EQ(estimate->memory().exchange_bytes(), 4 * saved + transient);
  spec.set_activation_checkpointing(true);
  EXPECT_EQ(EstimateJob(request)->memory().exchange_bytes(), saved + transient);
}

// The rank of the first and the last quarter keeps half the rows of the other three for the last.
TEST(EstimateTest, CountsRowsOfOtherRanksInEachLayer) {
  v1::EstimateTrainingJobRequest request = Long(2);
  v1::TrainingJobSpec& spec = *request.mutable_spec();
  const auto exchange = [&](int layers) {
    spec.mutable_model()->set_layers(layers);
    const auto estimate = EstimateJob(request);
    EXPECT_EQ(estimate->layouts(0).find("chosen: zigzag"), 0) << estimate->layouts(0);
    return estimate->memory().exchange_bytes();
  };
  const int64_t rows = 32 * 3 * (131072 / 4) / 2;
  EXPECT_EQ(exchange(12) - exchange(4), 8 * rows * 2 * 64 * 2);
}

v1::EstimateTrainingJobRequest LongBlocks(int ring, int64_t tokens) {
  v1::EstimateTrainingJobRequest request = Long(ring);
  v1::TrainingJobSpec& spec = *request.mutable_spec();
  spec.mutable_data()->set_sequence_length(tokens);
  spec.clear_attention();
  v1::BlockSparseSpec& blocks = *spec.mutable_attention()->mutable_block_sparse();
  blocks.set_kind(v1::BlockSparseSpec::LOCAL_WINDOW);
  blocks.set_density(1);
  return request;
}

// A mask of everything is dense attention: two products forward and five backward of half of all
// pairs, beside what a mask leaves as it is.
TEST(EstimateTest, CountsThePairsThatAMaskShows) {
  const double tokens = 32768, pairs = tokens * (tokens + 1) / 2, product = 2 * 2048;
  v1::EstimateTrainingJobRequest request = LongBlocks(1, 32768);
  const auto dense = EstimateJob(request);
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_TRUE(dense->warnings().empty()) << dense->warnings(0);
  request.mutable_spec()->mutable_attention()->mutable_block_sparse()->set_density(0.25);
  const auto quarter = EstimateJob(request);
  const double attended = 4 * 7 * product * pairs;
  EXPECT_NEAR((dense->step_flops() - quarter->step_flops()) / attended, 0.75, 0.01);
  EXPECT_EQ(dense->memory().activation_bytes(), quarter->memory().activation_bytes());
  for (const int ring : {2, 7}) {
    request.mutable_spec()->mutable_parallel()->set_ring_size(ring);
    const auto shared = EstimateJob(request);
    EXPECT_NEAR(shared->step_flops() / quarter->step_flops(), 1, 1e-9);
    EXPECT_GT(shared->exchanged_bytes_per_step(), 0);
  }
}

// A window of 16 blocks of keys before the query's, of contiguous chunks: the later of two ranks
// sees as many tokens of the earlier one, and keeps them in each layer.
TEST(EstimateTest, CountsRowsOfAMaskInEachLayer) {
  v1::EstimateTrainingJobRequest request = LongBlocks(2, 32768);
  v1::TrainingJobSpec& spec = *request.mutable_spec();
  spec.mutable_attention()->mutable_block_sparse()->set_density(0.125);
  const auto estimate = EstimateJob(request);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->layouts(0).find("chosen: contiguous"), 0) << estimate->layouts(0);
  const int64_t window = 16 * 128, row = 32 * 2 * 64;
  // Rows in bf16 of the later rank's, then their gradients in fp32.
  EXPECT_EQ(estimate->exchanged_bytes_per_step(), 4 * window * row * 4);
  EXPECT_EQ(estimate->memory().exchange_bytes(), 4 * window * row * 2 + window * row * 4);
  spec.set_activation_checkpointing(true);
  EXPECT_EQ(EstimateJob(request)->memory().exchange_bytes(), window * row * 2 + window * row * 4);
}

TEST(EstimateTest, WarnsOfDropoutThatKernelsDoNotKnow) {
  v1::EstimateTrainingJobRequest request = LongBlocks(1, 32768);
  request.mutable_spec()->mutable_attention()->set_dropout(0.1);
  const auto estimate = EstimateJob(request);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  ASSERT_EQ(estimate->warnings_size(), 1);
  EXPECT_EQ(estimate->warnings(0).find("attention.dropout is computed by products"), 0);
}

TEST(EstimateTest, LeavesOutWhatAMaskOfManyBlocksWouldCost) {
  const auto estimate = EstimateJob(LongBlocks(8, int64_t{1} << 21));
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  ASSERT_FALSE(estimate->warnings().empty());
  EXPECT_NE(estimate->warnings(0).find("too many blocks"), std::string::npos);
  ASSERT_EQ(estimate->shard_tokens_size(), 8);
  EXPECT_EQ(estimate->shard_tokens(7), 1 << 18);
  EXPECT_GT(estimate->memory().activation_bytes(), 0);
  EXPECT_GE(estimate->memory().total_bytes(), estimate->memory().activation_bytes());
  EXPECT_EQ(estimate->exchanged_bytes_per_step(), 0);
}

// Of ring_size x branches x heads, the plan of which would take minutes.
TEST(EstimateTest, LeavesOutWhatWouldTakeTooLong) {
  v1::EstimateTrainingJobRequest request;
  v1::TrainingJobSpec& spec = *request.mutable_spec();
  spec = CoreDriver::Spec(1024);
  spec.mutable_model()->set_dim(4096);
  spec.mutable_model()->set_heads(1024);
  spec.mutable_data()->set_sequence_length(int64_t{1} << 40);
  spec.clear_attention();
  for (int i = 0; i < 32; ++i) {
    spec.mutable_attention()->add_segment_lengths((int64_t{1} << 30) + i);
    spec.mutable_attention()->add_dilation_rates(2 + i);
  }
  const auto estimate = EstimateJob(request);
  ASSERT_TRUE(estimate.ok()) << estimate.status();
  EXPECT_EQ(estimate->shard_tokens_size(), 1024);
  EXPECT_EQ(estimate->layouts_size(), 1);
  EXPECT_GT(estimate->memory().activation_bytes(), 0);
  EXPECT_EQ(estimate->exchanged_bytes_per_step(), 0);
  ASSERT_FALSE(estimate->warnings().empty());
  EXPECT_NE(estimate->warnings(0).find("too large to plan"), std::string::npos);
}

}  // namespace
}  // namespace ringmaster::coordinator

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "tests/coordinator/core/core_driver.h"

namespace ringmaster::coordinator {
namespace {

using Code = absl::StatusCode;

struct Row {
  const char* name;
  std::function<void(v1::CreateTrainingJobRequest&)> spoil;
  // Of the violation.
  const char* field;
  // Of the ShapeViolation; empty when it is none.
  std::vector<int64_t> nearest = {};
};

v1::TrainingJobSpec& SpecOf(v1::CreateTrainingJobRequest& request) {
  return *request.mutable_training_job()->mutable_spec();
}

// Of a valid job.
v1::BlockSparseSpec& BlocksOf(v1::CreateTrainingJobRequest& request,
                              const std::string& preset = "random_25") {
  v1::BlockSparseSpec& blocks = *SpecOf(request).mutable_attention()->mutable_block_sparse();
  blocks.set_preset(preset);
  return blocks;
}

std::vector<Row> BlockSparseRows() {
  using R = v1::CreateTrainingJobRequest;
  using B = v1::BlockSparseSpec;
  const auto blocks = [](auto spoil) { return [spoil](R& r) { spoil(BlocksOf(r)); }; };
  const std::string at = "training_job.spec.attention.";
  static const std::string lengths = at + "segment_lengths", rates = at + "dilation_rates",
                           mode = at + "offset_mode", mix = at + "mix_gradient",
                           preset = at + "block_sparse.preset", kind = at + "block_sparse.kind",
                           density = at + "block_sparse.density",
                           size = at + "block_sparse.block_size",
                           per_head = at + "block_sparse.per_head";
  return {
      {"lengths_and_blocks",
       [](R& r) {
         BlocksOf(r);
         SpecOf(r).mutable_attention()->add_segment_lengths(512);
       },
       lengths.c_str()},
      {"rates_and_blocks",
       [](R& r) {
         BlocksOf(r);
         SpecOf(r).mutable_attention()->add_dilation_rates(1);
       },
       rates.c_str()},
      {"offsets_and_blocks",
       [](R& r) {
         BlocksOf(r);
         SpecOf(r).mutable_attention()->set_offset_mode(v1::PAPER);
       },
       mode.c_str()},
      {"mix_and_blocks",
       [](R& r) {
         BlocksOf(r);
         SpecOf(r).mutable_attention()->set_mix_gradient(v1::EXACT);
       },
       mix.c_str()},
      {"blocks_preset", blocks([](B& b) { b.set_preset("random_26"); }), preset.c_str()},
      {"no_kind", blocks([](B& b) {
         b.clear_preset();
         b.set_density(0.5);
       }),
       kind.c_str()},
      {"unknown_kind", blocks([](B& b) { b.set_kind(static_cast<B::Kind>(9)); }), kind.c_str()},
      {"hierarchical", blocks([](B& b) { b.set_kind(B::HIERARCHICAL); }), kind.c_str()},
      {"hierarchical_preset", blocks([](B& b) { b.set_preset("hierarchical_25"); }), kind.c_str()},
      {"no_density", blocks([](B& b) {
         b.clear_preset();
         b.set_kind(B::RANDOM);
       }),
       density.c_str()},
      {"density", blocks([](B& b) { b.set_density(1.5); }), density.c_str()},
      {"density_nan", blocks([](B& b) { b.set_density(std::numeric_limits<double>::quiet_NaN()); }),
       density.c_str()},
      {"block_size", blocks([](B& b) { b.set_block_size(100); }), size.c_str(), {64, 128}},
      {"per_head", [](R& r) { BlocksOf(r, "local_window_25").set_per_head(true); },
       per_head.c_str()},
      {"xpos_and_blocks",
       [](R& r) {
         BlocksOf(r);
         SpecOf(r).mutable_model()->set_positions(v1::XPOS);
       },
       "training_job.spec.model.positions"},
      // 2^14 blocks a side for one mask, half of it for each of four.
      {"blocks_of_a_mask",
       [](R& r) {
         BlocksOf(r);
         SpecOf(r).mutable_data()->set_sequence_length((1 << 21) + 1);
       },
       "training_job.spec.data.sequence_length",
       {1 << 21}},
      // 2^27 spans on two ranks.
      {"spans_of_a_mask",
       [](R& r) {
         BlocksOf(r).set_density(1);
         SpecOf(r).mutable_data()->set_sequence_length((1 << 20) + 1);
       },
       "training_job.spec.data.sequence_length",
       {1 << 20}},
      {"blocks_of_masks",
       [](R& r) {
         BlocksOf(r).set_per_head(true);
         SpecOf(r).mutable_data()->set_sequence_length((1 << 20) + 1);
       },
       "training_job.spec.data.sequence_length",
       {1 << 20}},
  };
}

std::vector<Row> Rows() {
  using R = v1::CreateTrainingJobRequest;
  return {
      {"no_spec", [](R& r) { r.mutable_training_job()->clear_spec(); }, "training_job.spec"},
      {"short_id", [](R& r) { r.set_training_job_id("abc"); }, "training_job_id"},
      {"reserved_id", [](R& r) { r.set_training_job_id("imported"); }, "training_job_id"},
      {"upper_id", [](R& r) { r.set_training_job_id("Job-a"); }, "training_job_id"},
      {"request_id", [](R& r) { r.set_request_id("1"); }, "request_id"},
      {"parent", [](R& r) { r.set_parent("project/x"); }, "parent"},
      {"label", [](R& r) { (*r.mutable_training_job()->mutable_labels())["A"] = "b"; },
       "training_job.labels"},
      {"no_model", [](R& r) { SpecOf(r).clear_model(); }, "training_job.spec.model"},
      {"preset", [](R& r) { SpecOf(r).mutable_model()->set_preset("huge"); },
       "training_job.spec.model.preset"},
      {"layers", [](R& r) { SpecOf(r).mutable_model()->set_layers(-1); },
       "training_job.spec.model.layers"},
      {"dim",
       [](R& r) { SpecOf(r).mutable_model()->set_dim(130); },
       "training_job.spec.model.dim",
       {128, 132}},
      {"odd_head",
       [](R& r) { SpecOf(r).mutable_model()->set_dim(132); },
       "training_job.spec.model.dim",
       {128, 136}},
      {"kv_heads",
       [](R& r) { SpecOf(r).mutable_model()->set_kv_heads(3); },
       "training_job.spec.model.kv_heads",
       {2, 4}},
      {"vocab", [](R& r) { SpecOf(r).mutable_model()->set_vocab_size(100); },
       "training_job.spec.model.vocab_size"},
      {"dropout", [](R& r) { SpecOf(r).set_dropout(1); }, "training_job.spec.dropout"},
      {"attention_dropout", [](R& r) { SpecOf(r).mutable_attention()->set_dropout(-0.1); },
       "training_job.spec.attention.dropout"},
      {"rates_missing", [](R& r) { SpecOf(r).mutable_attention()->add_segment_lengths(512); },
       "training_job.spec.attention.dilation_rates"},
      {"rate_above_length",
       [](R& r) {
         SpecOf(r).mutable_attention()->add_segment_lengths(8);
         SpecOf(r).mutable_attention()->add_dilation_rates(9);
       },
       "training_job.spec.attention.dilation_rates[0]",
       {8}},
      {"rate_zero",
       [](R& r) {
         SpecOf(r).mutable_attention()->add_segment_lengths(8);
         SpecOf(r).mutable_attention()->add_dilation_rates(0);
       },
       "training_job.spec.attention.dilation_rates[0]",
       {1}},
      {"no_data", [](R& r) { SpecOf(r).clear_data(); }, "training_job.spec.data"},
      {"no_paths", [](R& r) { SpecOf(r).mutable_data()->clear_paths(); },
       "training_job.spec.data.paths"},
      {"relative_path", [](R& r) { SpecOf(r).mutable_data()->set_paths(0, "a.txt"); },
       "training_job.spec.data.paths[0]"},
      {"sequence",
       [](R& r) { SpecOf(r).mutable_data()->set_sequence_length(-4); },
       "training_job.spec.data.sequence_length",
       {1}},
      {"fraction", [](R& r) { SpecOf(r).mutable_data()->set_validation_fraction(0.6); },
       "training_job.spec.data.validation_fraction"},
      {"lr", [](R& r) { SpecOf(r).mutable_optimizer()->set_lr(0); },
       "training_job.spec.optimizer.lr"},
      {"lr_nan",
       [](R& r) {
         SpecOf(r).mutable_optimizer()->set_lr(std::numeric_limits<double>::quiet_NaN());
       },
       "training_job.spec.optimizer.lr"},
      {"beta", [](R& r) { SpecOf(r).mutable_optimizer()->set_beta2(1); },
       "training_job.spec.optimizer.beta2"},
      {"warmup", [](R& r) { SpecOf(r).mutable_schedule()->set_warmup_steps(-1); },
       "training_job.spec.schedule.warmup_steps"},
      {"ring", [](R& r) { SpecOf(r).mutable_parallel()->set_ring_size(-2); },
       "training_job.spec.parallel.ring_size"},
      {"batch",
       [](R& r) {
         SpecOf(r).mutable_parallel()->set_replicas(2);
         SpecOf(r).mutable_batch()->set_micro_sequences(2);
         SpecOf(r).mutable_batch()->set_global_sequences(6);
       },
       "training_job.spec.batch.global_sequences",
       {4, 8}},
      {"tokens",
       [](R& r) {
         SpecOf(r).mutable_data()->set_sequence_length(int64_t{1} << 62);
         SpecOf(r).mutable_batch()->set_global_sequences(2);
       },
       "training_job.spec.batch.global_sequences",
       {1}},
      {"no_steps", [](R& r) { SpecOf(r).set_steps(0); }, "training_job.spec.steps"},
      {"steps", [](R& r) { SpecOf(r).set_steps(2'000'000'000); }, "training_job.spec.steps"},
      {"keep_last", [](R& r) { SpecOf(r).mutable_checkpoint()->set_keep_last(-1); },
       "training_job.spec.checkpoint.keep_last"},
      {"on_loss",
       [](R& r) { SpecOf(r).mutable_recovery()->set_on_loss(static_cast<v1::OnLoss>(2)); },
       "training_job.spec.recovery.on_loss"},
      {"hop", [](R& r) { SpecOf(r).mutable_recovery()->mutable_hop_deadline()->set_seconds(-1); },
       "training_job.spec.recovery.hop_deadline"},
      {"threads", [](R& r) { SpecOf(r).mutable_resources()->set_threads(-1); },
       "training_job.spec.resources.threads"},
      {"directory", [](R& r) { SpecOf(r).set_directory("/a/../b"); },
       "training_job.spec.directory"},
      {"root", [](R& r) { SpecOf(r).set_directory("/"); }, "training_job.spec.directory"},
      {"line_feed", [](R& r) { SpecOf(r).set_directory("/a\nb"); }, "training_job.spec.directory"},
      {"nul", [](R& r) { SpecOf(r).set_directory(std::string("/a\0b", 4)); },
       "training_job.spec.directory"},
      {"init_nul", [](R& r) { SpecOf(r).set_init_from(std::string("/a\0b", 4)); },
       "training_job.spec.init_from"},
      {"resume_unread", [](R& r) { SpecOf(r).set_resume_from("/ckpt"); },
       "training_job.spec.resume_from"},
      {"init_relative", [](R& r) { SpecOf(r).set_init_from("ckpt"); },
       "training_job.spec.init_from"},
      {"xpos_too_long",
       [](R& r) {
         SpecOf(r).mutable_model()->set_positions(v1::XPOS);
         SpecOf(r).mutable_attention()->add_segment_lengths(65536);
         SpecOf(r).mutable_attention()->add_dilation_rates(16);
       },
       "training_job.spec.model.positions"},
      {"xpos",
       [](R& r) {
         SpecOf(r).mutable_model()->set_positions(v1::XPOS);
         SpecOf(r).mutable_attention()->add_segment_lengths(1000);
         SpecOf(r).mutable_attention()->add_segment_lengths(1500);
         SpecOf(r).mutable_attention()->add_dilation_rates(1);
         SpecOf(r).mutable_attention()->add_dilation_rates(1);
       },
       "training_job.spec.model.positions"},
  };
}

TEST(CreateTest, NamesTheFieldOfEveryInvalidRequest) {
  std::vector<Row> rows = Rows();
  const std::vector<Row> of_blocks = BlockSparseRows();
  rows.insert(rows.end(), of_blocks.begin(), of_blocks.end());
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    CoreDriver d;
    v1::CreateTrainingJobRequest request = d.CreateRequest("job-a");
    row.spoil(request);
    const auto job = d.Call<v1::TrainingJob>(request);
    ASSERT_EQ(job.status().code(), Code::kInvalidArgument) << job.status();
    const ErrorDetails details = Details(job.status());
    ASSERT_FALSE(details.fields.empty());
    EXPECT_EQ(details.fields[0].field, row.field) << details.fields[0].description;
    EXPECT_EQ(details.reason, row.nearest.empty() ? "INVALID_FIELD" : "INVALID_SHAPE");
    if (!row.nearest.empty()) {
      ASSERT_EQ(details.shapes.size(), 1);
      const auto& nearest = details.shapes[0].nearest_valid();
      EXPECT_EQ(std::vector<int64_t>(nearest.begin(), nearest.end()), row.nearest);
    }
    EXPECT_TRUE(d.rows().empty());
  }
}

TEST(CreateTest, TellsEverythingAtOnce) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a");
  SpecOf(request).set_steps(0);
  SpecOf(request).mutable_model()->set_heads(7);
  SpecOf(request).mutable_optimizer()->set_beta1(-1);
  EXPECT_EQ(Details(d.Call<v1::TrainingJob>(request).status()).fields.size(), 3);
}

TEST(CreateTest, FillsInEveryDefault) {
  CoreDriver d;
  const auto job = d.Call<v1::TrainingJob>(d.CreateRequest("job-a"));
  ASSERT_TRUE(job.ok()) << job.status();
  const v1::TrainingJobSpec& spec = job->spec();
  EXPECT_EQ(spec.model().layers(), 2);
  EXPECT_EQ(spec.model().kv_heads(), 4);
  EXPECT_EQ(spec.model().ffn_dim(), 512);
  EXPECT_EQ(spec.model().vocab_size(), 256);
  EXPECT_TRUE(spec.model().tied_embeddings());
  EXPECT_EQ(spec.attention().segment_lengths_size(), 3);
  EXPECT_EQ(spec.optimizer().lr(), 6e-4);
  EXPECT_EQ(spec.optimizer().clip_norm(), 2);
  EXPECT_EQ(spec.schedule().warmup_steps(), 100);
  EXPECT_EQ(spec.schedule().decay(), v1::COSINE);
  EXPECT_EQ(spec.batch().global_sequences(), 1);
  EXPECT_EQ(spec.validation().interval_steps(), 100);
  EXPECT_EQ(spec.checkpoint().interval_steps(), 500);
  EXPECT_EQ(spec.checkpoint().keep_last(), 3);
  EXPECT_EQ(spec.recovery().rejoin_timeout().seconds(), 600);
  EXPECT_EQ(spec.recovery().episodes_max(), 100);
  EXPECT_EQ(spec.resources().threads(), 1);
  EXPECT_EQ(spec.directory(), absl::StrCat("/shared/default/job-a-", job->uid().substr(0, 8)));
  // The device decides, and it is not known yet.
  EXPECT_EQ(spec.precision(), v1::PRECISION_UNSPECIFIED);
  EXPECT_EQ(job->status().pending_reason().code(), "NOT_ENOUGH_WORKERS");
  EXPECT_FALSE(job->etag().empty());
}

// As stored it can be submitted again, and nothing of branches is filled in.
TEST(CreateTest, FillsInBlockSparseAttention) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a");
  BlocksOf(request, "random_25").set_block_size(64);
  const auto job = d.Call<v1::TrainingJob>(request);
  ASSERT_TRUE(job.ok()) << job.status();
  const v1::AttentionSpec& attention = job->spec().attention();
  EXPECT_EQ(attention.block_sparse().kind(), v1::BlockSparseSpec::RANDOM);
  EXPECT_EQ(attention.block_sparse().density(), 0.25);
  EXPECT_EQ(attention.block_sparse().block_size(), 64);
  EXPECT_TRUE(attention.segment_lengths().empty());
  EXPECT_EQ(attention.offset_mode(), v1::OFFSET_MODE_UNSPECIFIED);
  EXPECT_EQ(attention.mix_gradient(), v1::MIX_GRADIENT_UNSPECIFIED);
  v1::CreateTrainingJobRequest again = d.CreateRequest("job-b");
  *SpecOf(again).mutable_attention() = attention;
  const auto second = d.Call<v1::TrainingJob>(again);
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->spec().attention().SerializeAsString(), attention.SerializeAsString());
  v1::CreateTrainingJobRequest plain = d.CreateRequest("job-c");
  v1::BlockSparseSpec& blocks = *SpecOf(plain).mutable_attention()->mutable_block_sparse();
  blocks.set_kind(v1::BlockSparseSpec::LOCAL_WINDOW);
  blocks.set_density(0.3);
  const auto third = d.Call<v1::TrainingJob>(plain);
  ASSERT_TRUE(third.ok()) << third.status();
  EXPECT_EQ(third->spec().attention().block_sparse().block_size(), 128);
}

TEST(CreateTest, RequestIdMakesOneJob) {
  constexpr char kId[] = "0a1b2c3d-0000-4000-8000-000000000001";
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("");
  request.set_request_id(kId);
  const auto first = d.Call<v1::TrainingJob>(request);
  d.Start();
  const auto second = d.Call<v1::TrainingJob>(request);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->uid(), second->uid());
  SpecOf(request).set_steps(11);
  const auto other = d.Call<v1::TrainingJob>(request);
  EXPECT_EQ(other.status().code(), Code::kAlreadyExists);
  EXPECT_EQ(Details(other.status()).reason, "REQUEST_ID_REUSED");
  d.Advance(absl::Hours(24) + absl::Seconds(1), false);
  EXPECT_TRUE(d.Call<v1::TrainingJob>(request).ok());
}

TEST(CreateTest, ValidateOnlyStoresNothing) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a");
  request.set_validate_only(true);
  const auto job = d.Call<v1::TrainingJob>(request);
  ASSERT_TRUE(job.ok());
  EXPECT_EQ(job->spec().model().dim(), 128);
  EXPECT_TRUE(d.rows().empty());
  EXPECT_EQ(d.Core().FindJob(job->name()), nullptr);
}

TEST(CreateTest, AJobOfADeletedJobsIdFindsNoneOfItsFiles) {
  CoreDriver d;
  d.Create("job-a");
  const std::string before = d.Job("job-a").spec().directory();
  v1::CancelTrainingJobRequest cancel;
  cancel.set_name(d.Job("job-a").name());
  ASSERT_TRUE(d.Call<v1::TrainingJob>(cancel).ok());
  v1::DeleteTrainingJobRequest remove;
  remove.set_name(cancel.name());
  ASSERT_TRUE(d.Call<google::protobuf::Empty>(remove).ok());
  d.Create("job-a");
  EXPECT_NE(d.Job("job-a").spec().directory(), before);
}

TEST(CreateTest, ADirectoryBelongsToOneJobAtATime) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a");
  SpecOf(request).set_directory("/shared/mine");
  ASSERT_TRUE(d.Call<v1::TrainingJob>(request).ok());
  request.set_training_job_id("job-b");
  const absl::Status status = d.Call<v1::TrainingJob>(request).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("projects/default/trainingJobs/job-a"), std::string::npos)
      << status;
  // However it is written.
  for (const char* same : {"/shared/mine/", "//shared///mine//"}) {
    SpecOf(request).set_directory(same);
    EXPECT_EQ(d.Call<v1::TrainingJob>(request).status().code(), Code::kInvalidArgument) << same;
  }
  v1::CancelTrainingJobRequest cancel;
  cancel.set_name(d.Job("job-a").name());
  ASSERT_TRUE(d.Call<v1::TrainingJob>(cancel).ok());
  EXPECT_TRUE(d.Call<v1::TrainingJob>(request).ok());
  EXPECT_EQ(d.Job("job-b").spec().directory(), "/shared/mine");
  // The one that a job gets as well.
  CoreOptions options;
  options.shared_directory = "//shared/of///all/";
  CoreDriver untidy(options);
  untidy.Create("job-c");
  EXPECT_TRUE(
      absl::StartsWith(untidy.Job("job-c").spec().directory(), "/shared/of/all/default/job-c-"))
      << untidy.Job("job-c").spec().directory();
}

TEST(CreateTest, RefusesTakenIdsAndTooManyJobs) {
  CoreOptions options = CoreDriver::Options();
  options.unfinished_jobs_max = 2;
  CoreDriver d(options);
  d.Create("job-a");
  EXPECT_EQ(d.Call<v1::TrainingJob>(d.CreateRequest("job-a")).status().code(),
            Code::kAlreadyExists);
  d.Create("job-b");
  EXPECT_EQ(d.Call<v1::TrainingJob>(d.CreateRequest("job-c")).status().code(),
            Code::kResourceExhausted);
}

TEST(CreateTest, NamesTheLongestDuration) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a");
  SpecOf(request).mutable_recovery()->mutable_hop_deadline()->set_seconds(999'999'999'999);
  const ErrorDetails details = Details(d.Call<v1::TrainingJob>(request).status());
  ASSERT_EQ(details.fields.size(), 1);
  EXPECT_NE(details.fields[0].description.find("at most 315576000000 s"), std::string::npos);
}

TEST(CreateTest, ResumesFromAManifest) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a", 1);
  SpecOf(request).set_resume_from("/old/step-5");
  ManifestFile file;
  file.checkpoint.set_step(5);
  file.checkpoint.set_directory("/old/step-5");
  file.spec = d.Call<v1::TrainingJob>(d.CreateRequest("job-b", 1))->spec();
  SpecOf(request).mutable_optimizer()->set_lr(3e-4);
  // How soon a job runs is nothing of what it trains.
  SpecOf(request).set_priority(7);
  const auto job = d.Call<v1::TrainingJob>(request, file);
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ(job->status().resume_overrides_size(), 1);
  EXPECT_EQ(job->status().resume_overrides(0), "optimizer.lr: 0.0006 -> 0.0003");

  request.set_training_job_id("job-c");
  SpecOf(request).set_steps(5);
  EXPECT_EQ(Details(d.Call<v1::TrainingJob>(request, file).status()).fields[0].field,
            "training_job.spec.steps");
  SpecOf(request).set_steps(10);
  file.spec->mutable_model()->set_layers(3);
  EXPECT_EQ(Details(d.Call<v1::TrainingJob>(request, file).status()).fields[0].field,
            "training_job.spec.model.layers");
  const auto missing = d.Call<v1::TrainingJob>(request, absl::NotFoundError("no such file"));
  EXPECT_EQ(Details(missing.status()).fields[0].field, "training_job.spec.resume_from");
}

// As ringctl checkpoints convert-torchscale writes it: no step was ever done, no moments are there.
TEST(CreateTest, ParametersAloneAreForInitFrom) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a", 1);
  SpecOf(request).set_resume_from("/made/step-0");
  ManifestFile file;
  file.checkpoint.set_directory("/made/step-0");
  const ErrorDetails details = Details(d.Call<v1::TrainingJob>(request, file).status());
  ASSERT_EQ(details.fields.size(), 1);
  EXPECT_EQ(details.fields[0].field, "training_job.spec.resume_from");
  EXPECT_NE(details.fields[0].description.find("use init_from"), std::string::npos);
  SpecOf(request).set_init_from("/made/step-0");
  EXPECT_TRUE(d.Call<v1::TrainingJob>(request, file).ok());
}

// What the heads see is as much a part of trained parameters as their shapes are.
TEST(CreateTest, ParametersKeepTheirOffsetMode) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a", 1);
  ManifestFile file;
  file.checkpoint.set_directory("/ckpt/step-60");
  file.checkpoint.set_step(60);
  file.spec = d.Call<v1::TrainingJob>(d.CreateRequest("job-b", 1)).value().spec();
  file.spec->mutable_attention()->set_offset_mode(v1::TORCHSCALE);
  file.spec->mutable_attention()->set_mix_gradient(v1::DETACHED);
  file.spec->mutable_optimizer()->set_lr(0.5);
  SpecOf(request).set_steps(100);
  for (const bool resumes : {false, true}) {
    if (resumes) {
      SpecOf(request).set_resume_from("/ckpt/step-60");
    } else {
      SpecOf(request).set_init_from("/ckpt/step-60");
    }
    const ErrorDetails details = Details(d.Call<v1::TrainingJob>(request, file).status());
    ASSERT_EQ(details.fields.size(), 1);
    EXPECT_EQ(details.fields[0].field, "training_job.spec.attention.offset_mode");
    EXPECT_NE(details.fields[0].description.find("(TORCHSCALE -> PAPER)"), std::string::npos)
        << details.fields[0].description;
  }
  SpecOf(request).set_init_from("/ckpt/step-60");
  SpecOf(request).mutable_attention()->set_offset_mode(v1::TORCHSCALE);
  const auto job = d.Call<v1::TrainingJob>(request, file);
  ASSERT_TRUE(job.ok()) << job.status();
  // The optimizer is none of the parameters' business.
  EXPECT_THAT(job->status().resume_overrides(),
              ::testing::ElementsAre("attention.mix_gradient: DETACHED -> EXACT"));
}

TEST(CreateTest, ParametersKeepTheirMaskButForItsDensity) {
  CoreDriver d;
  v1::CreateTrainingJobRequest request = d.CreateRequest("job-a", 1);
  SpecOf(request).set_steps(100);
  SpecOf(request).set_resume_from("/ckpt/step-60");
  BlocksOf(request).set_seed(2);
  ManifestFile file;
  file.checkpoint.set_directory("/ckpt/step-60");
  file.checkpoint.set_step(60);
  const auto fields = [&] {
    std::vector<std::string> names;
    for (const FieldViolation& violation :
         Details(d.Call<v1::TrainingJob>(request, file).status()).fields) {
      names.push_back(violation.field);
    }
    return names;
  };
  const std::string at = "training_job.spec.attention.";
  file.spec = d.Call<v1::TrainingJob>(d.CreateRequest("job-b", 1)).value().spec();
  EXPECT_THAT(fields(),
              ::testing::UnorderedElementsAre(at + "offset_mode", at + "block_sparse.kind"));
  v1::CreateTrainingJobRequest before = d.CreateRequest("job-c", 1);
  BlocksOf(before, "local_window_10").set_block_size(64);
  const v1::TrainingJobSpec window = d.Call<v1::TrainingJob>(before).value().spec();
  file.spec = window;
  EXPECT_THAT(fields(), ::testing::ElementsAre(at + "block_sparse.kind"));
  v1::CreateTrainingJobRequest random = d.CreateRequest("job-d", 1);
  BlocksOf(random, "random_10").set_block_size(64);
  file.spec = d.Call<v1::TrainingJob>(random).value().spec();
  BlocksOf(request, "random_10").set_block_size(128);
  EXPECT_THAT(fields(), ::testing::UnorderedElementsAre(at + "block_sparse.seed",
                                                        at + "block_sparse.block_size"));
  // Of what is not drawn both are free.
  file.spec = window;
  BlocksOf(request, "local_window_25").set_seed(5);
  const auto job = d.Call<v1::TrainingJob>(request, file);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->status().resume_overrides(),
              ::testing::IsSupersetOf({"attention.block_sparse.density: 0.1 -> 0.25",
                                       "attention.block_sparse.block_size: 64 -> 128"}));
}

TEST(CreateTest, AReplayedRequestNeverReturnsAnotherJob) {
  CoreDriver d;
  v1::CreateTrainingJobRequest first = d.CreateRequest("job-a");
  first.set_request_id("3f2a9c1e-5b7d-4e1a-9c3b-0d6f8a7e5b21");
  ASSERT_TRUE(d.Call<v1::TrainingJob>(first).ok());
  v1::CancelTrainingJobRequest cancel;
  cancel.set_name(d.Job("job-a").name());
  cancel.set_request_id("3f2a9c1e-5b7d-4e1a-9c3b-0d6f8a7e5b22");
  ASSERT_TRUE(d.Call<v1::TrainingJob>(cancel).ok());
  v1::DeleteTrainingJobRequest remove;
  remove.set_name(cancel.name());
  ASSERT_TRUE(d.Call<google::protobuf::Empty>(remove).ok());
  const v1::CreateTrainingJobRequest second = d.CreateRequest("job-a");
  const auto created = d.Call<v1::TrainingJob>(second);
  ASSERT_TRUE(created.ok()) << created.status();
  // Also after a restart.
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(d.Call<v1::TrainingJob>(first).status().code(), Code::kNotFound);
    EXPECT_EQ(d.Call<v1::TrainingJob>(cancel).status().code(), Code::kNotFound);
    d.Start();
  }
  EXPECT_EQ(d.Job("job-a").uid(), created->uid());
  EXPECT_EQ(d.Job("job-a").status().state(), v1::TrainingJobStatus::QUEUED);
}

}  // namespace
}  // namespace ringmaster::coordinator

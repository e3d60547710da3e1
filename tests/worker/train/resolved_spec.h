#pragma once

#include "google/protobuf/text_format.h"
#include "gtest/gtest.h"
#include "ringmaster/v1/job.pb.h"

namespace ringmaster::worker {

// A small job with every field that the coordinator fills in.
inline v1::TrainingJobSpec ResolvedSpec() {
  v1::TrainingJobSpec spec;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(
      R"pb(
        model {
          layers: 2
          dim: 32
          heads: 4
          kv_heads: 2
          ffn_dim: 64
          vocab_size: 256
          positions: ROTARY
          tied_embeddings: true
          sub_ln: true
        }
        attention {
          segment_lengths: [ 16, 192, 512 ]
          dilation_rates: [ 1, 2, 4 ]
          offset_mode: PAPER
          mix_gradient: EXACT
        }
        data { paths: "/data/*.txt" sequence_length: 320 validation_fraction: 0.1 seed: 3 }
        optimizer {
          lr: 0.001
          beta1: 0.9
          beta2: 0.98
          epsilon: 1e-08
          weight_decay: 0.01
          clip_norm: 2
        }
        schedule { warmup_steps: 10 decay: COSINE final_lr_ratio: 0.1 power: 1 }
        batch { global_sequences: 4 micro_sequences: 1 }
        parallel { ring_size: 2 replicas: 2 }
        precision: FP32
        steps: 110
        seed: 5
        validation { interval_steps: 50 sequences: 4 }
        resources { threads: 1 }
      )pb",
      &spec));
  return spec;
}

}  // namespace ringmaster::worker

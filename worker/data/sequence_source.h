#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "attention/plan/shard_map.h"
#include "worker/data/byte_corpus.h"

namespace ringmaster::worker {

// This rank's part of one sequence: the token at each local position and the one that follows it in
// the corpus, which is its label. Shifting before sharding means that no rank needs a neighbour's
// token.
struct ShardBytes {
  std::vector<uint8_t> tokens;
  std::vector<uint8_t> labels;
};

// Cuts a corpus into training and validation sequences of N tokens. Which bytes sequence `index` of
// step `step` holds is a pure function of (corpus, N, seed, step, index), so that a job resumes
// exactly with any world size. Training sequences visit all windows of the training part once a
// pass, in an order and from a first byte that differ from pass to pass. Thread-safe.
class SequenceSource {
 public:
  struct Options {
    int64_t sequence_length = 0;
    // Of the corpus, taken from its end; 0: no validation.
    double validation_fraction = 0;
    uint64_t seed = 0;
    // Training sequences per step, over all replicas.
    int64_t sequences_per_step = 1;
  };

  // InvalidArgument, with the sizes, when a part is shorter than N + 1 bytes.
  static absl::StatusOr<SequenceSource> Create(std::shared_ptr<const ByteCorpus> corpus,
                                               const Options& options);

  const ByteCorpus& corpus() const { return *corpus_; }
  bool has_validation() const { return validation_begin_ < corpus_->size(); }

  // First byte of a sequence. REQUIRES: 0 <= index < sequences_per_step; for validation 0 <= index
  // < count and has_validation(). The `count` validation sequences are spread evenly.
  int64_t TrainingOffset(int64_t step, int64_t index) const;
  int64_t ValidationOffset(int64_t index, int64_t count) const;

  // The tokens of `ranges` of the sequence that starts at `offset`; reads only those bytes and one
  // more per range. Errors as ByteCorpus::Read.
  absl::StatusOr<ShardBytes> Read(int64_t offset,
                                  absl::Span<const attention::TokenRange> ranges) const;

 private:
  SequenceSource(std::shared_ptr<const ByteCorpus> corpus, const Options& options,
                 int64_t validation_begin)
      : corpus_(std::move(corpus)), options_(options), validation_begin_(validation_begin) {}

  std::shared_ptr<const ByteCorpus> corpus_;
  Options options_;
  int64_t validation_begin_;
};

}  // namespace ringmaster::worker

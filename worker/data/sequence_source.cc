#include "worker/data/sequence_source.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace ringmaster::worker {
namespace {

// The output function of SplitMix64: a bijection that mixes all bits.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A permutation of [0, count) chosen by `key`: a four-round Feistel network on the next even number
// of bits, walked until it lands inside, which takes less than four steps on average.
uint64_t Permute(uint64_t index, uint64_t count, uint64_t key) {
  int half_bits = 1;
  while (half_bits < 32 && (uint64_t{1} << (2 * half_bits)) < count) {
    ++half_bits;
  }
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  do {
    uint64_t left = index >> half_bits;
    uint64_t right = index & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (Mix(right ^ Mix(key + round)) & mask);
      left = right;
      right = next;
    }
    index = (left << half_bits) | right;
  } while (index >= count);
  return index;
}

absl::Status CheckPart(const char* part, int64_t bytes, int64_t sequence_length,
                       const char* advice) {
  if (bytes > sequence_length) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the ", part, " part of the data has ", bytes, " bytes; data.sequence_length ",
                   sequence_length, " needs at least ", sequence_length + 1, ": ", advice));
}

}  // namespace

absl::StatusOr<SequenceSource> SequenceSource::Create(std::shared_ptr<const ByteCorpus> corpus,
                                                      const Options& options) {
  const int64_t size = corpus->size();
  const auto held_out =
      static_cast<int64_t>(static_cast<double>(size) * options.validation_fraction);
  RETURN_IF_ERROR(CheckPart("training", size - held_out, options.sequence_length,
                            "use more data or shorter sequences"));
  if (options.validation_fraction > 0) {
    RETURN_IF_ERROR(CheckPart("validation", held_out, options.sequence_length,
                              "use more data, a larger data.validation_fraction or 0, or shorter "
                              "sequences"));
  }
  return SequenceSource(std::move(corpus), options, size - held_out);
}

int64_t SequenceSource::TrainingOffset(int64_t step, int64_t index) const {
  const int64_t length = options_.sequence_length;
  // Each window needs one byte more than its tokens, the last label; so does what is left over.
  const int64_t windows = (validation_begin_ - 1) / length;
  const int64_t spare = validation_begin_ - 1 - windows * length;
  const int64_t number = step * options_.sequences_per_step + index;
  const uint64_t pass = static_cast<uint64_t>(number / windows);
  const uint64_t key = Mix(options_.seed ^ Mix(pass));
  const auto window = static_cast<int64_t>(Permute(number % windows, windows, key));
  // Window borders move from pass to pass by up to the bytes that no window covers.
  const auto shift = static_cast<int64_t>(Mix(key) % static_cast<uint64_t>(spare + 1));
  return window * length + shift;
}

int64_t SequenceSource::ValidationOffset(int64_t index, int64_t count) const {
  const int64_t last = corpus_->size() - 1 - options_.sequence_length;
  return count == 1 ? validation_begin_
                    : validation_begin_ + (last - validation_begin_) / (count - 1) * index;
}

absl::StatusOr<ShardBytes> SequenceSource::Read(
    int64_t offset, absl::Span<const attention::TokenRange> ranges) const {
  ShardBytes bytes;
  std::vector<uint8_t> run;
  for (const attention::TokenRange& range : ranges) {
    run.resize(range.size() + 1);
    RETURN_IF_ERROR(corpus_->Read(offset + range.begin, absl::MakeSpan(run)));
    bytes.tokens.insert(bytes.tokens.end(), run.begin(), run.end() - 1);
    bytes.labels.insert(bytes.labels.end(), run.begin() + 1, run.end());
  }
  return bytes;
}

}  // namespace ringmaster::worker

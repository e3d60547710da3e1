#include "worker/comm/accused_ranks.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace ringmaster::worker {
namespace {

constexpr char kPayload[] = "ringmaster/accused-ranks";

}  // namespace

absl::Status Accuse(absl::Status error, const std::vector<int>& ranks) {
  error.SetPayload(kPayload, absl::Cord(absl::StrJoin(ranks, ",")));
  return error;
}

std::vector<int> AccusedRanks(const absl::Status& error) {
  std::vector<int> ranks;
  const std::string payload(error.GetPayload(kPayload).value_or(absl::Cord()));
  for (const absl::string_view part : absl::StrSplit(payload, ',')) {
    if (int rank = 0; absl::SimpleAtoi(part, &rank)) ranks.push_back(rank);
  }
  return ranks;
}

}  // namespace ringmaster::worker

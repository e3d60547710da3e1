#include "worker/comm/accused_rank.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace ringmaster::worker {
namespace {

constexpr char kPayload[] = "ringmaster/accused-rank";

}  // namespace

absl::Status Accuse(absl::Status error, int rank) {
  error.SetPayload(kPayload, absl::Cord(absl::StrCat(rank)));
  return error;
}

std::optional<int> AccusedRank(const absl::Status& error) {
  const auto payload = error.GetPayload(kPayload);
  int rank = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &rank)) {
    return std::nullopt;
  }
  return rank;
}

}  // namespace ringmaster::worker

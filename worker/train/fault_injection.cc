#include "worker/train/fault_injection.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <csignal>
#include <iterator>
#include <stdexcept>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ringmaster::worker {
namespace {

constexpr std::string_view kPhases[] = {"data",     "embedding", "forward", "loss",
                                        "backward", "reduce",    "vote",    "update"};

struct KindName {
  std::string_view name;
  FaultInjection::Kind kind;
};
constexpr KindName kKinds[] = {{"throw", FaultInjection::Kind::kThrow},
                               {"oom", FaultInjection::Kind::kOutOfMemory},
                               {"nan", FaultInjection::Kind::kNotANumber},
                               {"kill", FaultInjection::Kind::kKill}};

absl::Status Refuse(std::string_view what, std::string_view value) {
  return absl::InvalidArgumentError(
      absl::StrCat("RINGMASTER_FAULT: ", std::string(what), " '", std::string(value), "'"));
}

absl::Status Set(const std::string& key, const std::string& value, FaultInjection* fault) {
  if (key == "phase") {
    fault->phase = value;
    return std::find(std::begin(kPhases), std::end(kPhases), value) != std::end(kPhases)
               ? absl::OkStatus()
               : Refuse("unknown phase", value);
  }
  if (key == "kind") {
    const auto* kind = std::find_if(std::begin(kKinds), std::end(kKinds),
                                    [&](const KindName& named) { return named.name == value; });
    if (kind == std::end(kKinds)) {
      return Refuse("unknown kind", value);
    }
    fault->kind = kind->kind;
    return absl::OkStatus();
  }
  int64_t number = 0;
  if (!absl::SimpleAtoi(value, &number) || number < 0) {
    return Refuse(absl::StrCat(key, " is no number:"), value);
  }
  if (key == "rank") {
    fault->rank = static_cast<int>(number);
  } else if (key == "step") {
    fault->step = number;
  } else if (key == "layer") {
    fault->layer = number;
  } else if (key == "generation") {
    fault->generation = number;
  } else {
    return Refuse("unknown key", key);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FaultInjection> FaultInjection::Parse(std::string_view text) {
  FaultInjection fault;
  if (text.empty()) {
    return fault;
  }
  for (const absl::string_view item :
       absl::StrSplit(absl::string_view(text.data(), text.size()), ',')) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(item, absl::MaxSplits('=', 1));
    if (absl::Status status = Set(pair.first, pair.second, &fault); !status.ok()) {
      return status;
    }
  }
  if (fault.phase.empty() || fault.kind == Kind::kNone) {
    return Refuse("phase and kind are needed in", text);
  }
  return fault;
}

bool FaultPoint::Reach(int64_t step, std::string_view phase, int64_t layer) const {
  const bool by_layer = phase == "forward" || phase == "backward";
  if (!armed_ || fault_.step != step || fault_.phase != phase ||
      (by_layer && fault_.layer != layer)) {
    return false;
  }
  switch (fault_.kind) {
    case FaultInjection::Kind::kThrow:
      throw std::runtime_error("injected exception");
    case FaultInjection::Kind::kOutOfMemory:
      TORCH_CHECK_WITH(OutOfMemoryError, false, "injected: out of memory");
    case FaultInjection::Kind::kKill:
      raise(SIGKILL);
      return false;
    case FaultInjection::Kind::kNotANumber:
      return true;
    case FaultInjection::Kind::kNone:
      return false;
  }
  return false;
}

}  // namespace ringmaster::worker

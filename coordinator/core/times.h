#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"
#include "google/protobuf/timestamp.pb.h"

// absl times and their proto forms.
namespace ringmaster::coordinator {

inline google::protobuf::Timestamp ToProto(absl::Time time) {
  const int64_t nanos = absl::ToUnixNanos(time);
  const int64_t fraction = (nanos % 1'000'000'000 + 1'000'000'000) % 1'000'000'000;
  google::protobuf::Timestamp proto;
  proto.set_seconds((nanos - fraction) / 1'000'000'000);
  proto.set_nanos(static_cast<int32_t>(fraction));
  return proto;
}

inline google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration proto;
  proto.set_seconds(absl::ToInt64Seconds(duration));
  proto.set_nanos(static_cast<int32_t>(
      absl::ToInt64Nanoseconds(duration - absl::Seconds(absl::ToInt64Seconds(duration)))));
  return proto;
}

inline absl::Time FromProto(const google::protobuf::Timestamp& proto) {
  return absl::FromUnixSeconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

inline absl::Duration FromProto(const google::protobuf::Duration& proto) {
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

// Never negative: the clocks of two machines may differ.
inline int64_t ElapsedMs(absl::Time from, absl::Time to) {
  return std::max<int64_t>(0, absl::ToInt64Milliseconds(to - from));
}

}  // namespace ringmaster::coordinator

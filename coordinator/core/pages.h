#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"

namespace ringmaster::coordinator {

// Keyset pagination. A page token holds the key of the last item shown and is bound to the request
// (all fields but page_size and page_token), so that a token of another request is recognised. It
// is no secret, only opaque.

// 50 when unset, at most 1000; negative: InvalidArgument.
absl::StatusOr<int> PageSize(int32_t requested);

// A page that holds this much already ends, whatever its size: clients accept messages of 4 MiB by
// default, and no single item is larger than the server's limit for requests, 2 MiB.
inline constexpr size_t kPageBytes = 3 << 19;

// A number that is the same exactly for equal messages of one type.
uint64_t RequestHash(const google::protobuf::Message& request);

// `request` with page_size and page_token cleared.
std::string MakePageToken(const google::protobuf::Message& request, absl::string_view key);
// The key, or "" for an empty token. InvalidArgument when the token was made for another request.
absl::StatusOr<std::string> ParsePageToken(const google::protobuf::Message& request,
                                           absl::string_view token);

}  // namespace ringmaster::coordinator

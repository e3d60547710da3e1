#include "coordinator/core/pages.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "proto/rpc_status.h"

namespace ringmaster::coordinator {
namespace {

constexpr int kPageSizeDefault = 50;
constexpr int kPageSizeMax = 1000;
constexpr size_t kMarkBytes = 16;

// FNV-1a with a final mix; these are no defence against forgers.
uint64_t Hash(absl::string_view bytes) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : bytes) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  }
  hash ^= hash >> 32;
  return hash * 0x9E3779B97F4A7C15u;
}

std::string Deterministic(const google::protobuf::Message& message) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    message.SerializeToCodedStream(&coded);
  }
  return bytes;
}

std::string Mark(const google::protobuf::Message& request, absl::string_view key) {
  return absl::StrFormat("%016x", Hash(absl::StrCat(RequestHash(request), "/", key)));
}

}  // namespace

absl::StatusOr<int> PageSize(int32_t requested) {
  if (requested < 0) {
    return InvalidField("page_size", absl::StrFormat("is %d; it must not be negative", requested));
  }
  return requested == 0 ? kPageSizeDefault : std::min(requested, kPageSizeMax);
}

uint64_t RequestHash(const google::protobuf::Message& request) {
  return Hash(absl::StrCat(request.GetDescriptor()->full_name(), "\n", Deterministic(request)));
}

std::string MakePageToken(const google::protobuf::Message& request, absl::string_view key) {
  return absl::WebSafeBase64Escape(absl::StrCat(Mark(request, key), key));
}

absl::StatusOr<std::string> ParsePageToken(const google::protobuf::Message& request,
                                           absl::string_view token) {
  if (token.empty()) return "";
  std::string text;
  if (absl::WebSafeBase64Unescape(token, &text) && text.size() > kMarkBytes) {
    std::string key = text.substr(kMarkBytes);
    if (text.substr(0, kMarkBytes) == Mark(request, key)) return key;
  }
  return InvalidField("page_token",
                      "was not made by this service for this request; pass next_page_token of the "
                      "page before and keep all other fields as they were");
}

}  // namespace ringmaster::coordinator

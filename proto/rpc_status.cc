#include "proto/rpc_status.h"

#include <compare>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/message.h"
#include "google/rpc/error_details.pb.h"

namespace ringmaster {
namespace {

constexpr char kTypePrefix[] = "type.googleapis.com/";
// Together below 8 KiB after base64 (4/3) and percent-encoding, with room for the call's other
// metadata.
constexpr size_t kMessageBytesMax = 768;
constexpr size_t kDetailBytesMax = 3600;
constexpr size_t kFieldsInMessageMax = 8;

std::string TypeUrl(const google::protobuf::Message& message) {
  return absl::StrCat(kTypePrefix, message.GetDescriptor()->full_name());
}

// A status holds one payload per URL; the second and later details of one type get "#2", "#3"
// behind it.
void AddPayload(absl::Status& status, const std::string& type_url, absl::Cord bytes) {
  std::string key = type_url;
  for (int n = 2; status.GetPayload(key).has_value(); ++n) key = absl::StrCat(type_url, "#", n);
  status.SetPayload(key, std::move(bytes));
}

void AddDetail(absl::Status& status, const google::protobuf::Message& detail) {
  AddPayload(status, TypeUrl(detail), absl::Cord(detail.SerializeAsString()));
}

// ErrorInfo first and BadRequest second, so that they are there whatever must be left out; details
// of one type in the order in which they were added.
struct PayloadKey {
  int priority;
  std::string url;
  int position;
  auto operator<=>(const PayloadKey&) const = default;
};

// ForEachPayload's own order is random.
std::map<PayloadKey, absl::Cord> SortedPayloads(const absl::Status& status) {
  std::map<PayloadKey, absl::Cord> sorted;
  status.ForEachPayload([&](absl::string_view key, const absl::Cord& payload) {
    const std::string url(key.substr(0, key.find('#')));
    int position = 1;
    if (url.size() < key.size()) (void)absl::SimpleAtoi(key.substr(url.size() + 1), &position);
    int priority = 2;
    if (url == TypeUrl(google::rpc::BadRequest())) priority = 1;
    if (url == TypeUrl(google::rpc::ErrorInfo())) priority = 0;
    sorted[{.priority = priority, .url = url, .position = position}] = payload;
  });
  return sorted;
}

// Cuts at a character's start, so that the result stays valid UTF-8.
std::string Shortened(absl::string_view text, size_t bytes_max) {
  if (text.size() <= bytes_max) return std::string(text);
  size_t end = bytes_max;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return absl::StrCat(text.substr(0, end), "...");
}

absl::Status WithResource(absl::Status status, absl::string_view type, absl::string_view name) {
  google::rpc::ResourceInfo resource;
  resource.set_resource_type(std::string(type));
  resource.set_resource_name(Shortened(name, 512));
  AddDetail(status, resource);
  return status;
}

std::map<std::string, std::string> ResourceMetadata(absl::string_view type,
                                                    absl::string_view name) {
  return {{"resource_type", std::string(type)}, {"resource_name", Shortened(name, 512)}};
}

// Halves the repeated violations until the detail fits, so that the first ones survive.
std::string BoundedBadRequest(google::rpc::BadRequest request, size_t bytes_max) {
  for (auto& violation : *request.mutable_field_violations()) {
    violation.set_field(Shortened(violation.field(), 256));
    violation.set_description(Shortened(violation.description(), 512));
  }
  while (request.ByteSizeLong() > bytes_max && request.field_violations_size() > 1) {
    const int keep = request.field_violations_size() / 2;
    request.mutable_field_violations()->DeleteSubrange(keep,
                                                       request.field_violations_size() - keep);
  }
  return request.SerializeAsString();
}

template <typename T>
bool Decode(absl::string_view type_url, const absl::Cord& bytes, T& detail) {
  return type_url == TypeUrl(detail) && detail.ParseFromString(std::string(bytes));
}

void Collect(absl::string_view type_url, const absl::Cord& bytes, ErrorDetails& details) {
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest bad_request;
  google::rpc::RetryInfo retry;
  google::rpc::ResourceInfo resource;
  v1::ShapeViolation shape;
  if (Decode(type_url, bytes, info)) {
    details.reason = info.reason();
    details.domain = info.domain();
    details.metadata = {info.metadata().begin(), info.metadata().end()};
  } else if (Decode(type_url, bytes, bad_request)) {
    for (const auto& violation : bad_request.field_violations()) {
      details.fields.push_back(
          {.field = violation.field(), .description = violation.description()});
    }
  } else if (Decode(type_url, bytes, retry)) {
    details.retry_delay = absl::Seconds(retry.retry_delay().seconds()) +
                          absl::Nanoseconds(retry.retry_delay().nanos());
  } else if (Decode(type_url, bytes, resource)) {
    details.resource_type = resource.resource_type();
    details.resource_name = resource.resource_name();
  } else if (Decode(type_url, bytes, shape)) {
    details.shapes.push_back(shape);
  }
}

}  // namespace

absl::Status WithErrorInfo(absl::Status status, absl::string_view reason,
                           const std::map<std::string, std::string>& metadata) {
  if (status.ok()) return status;
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kErrorDomain);
  for (const auto& [key, value] : metadata) (*info.mutable_metadata())[key] = Shortened(value, 512);
  status.SetPayload(TypeUrl(info), absl::Cord(info.SerializeAsString()));
  return status;
}

absl::Status InvalidFields(const std::vector<FieldViolation>& violations,
                           const std::vector<v1::ShapeViolation>& shapes) {
  std::vector<std::string> parts;
  google::rpc::BadRequest bad_request;
  for (const FieldViolation& violation : violations) {
    if (parts.size() < kFieldsInMessageMax) {
      parts.push_back(absl::StrCat(violation.field, ": ", violation.description));
    }
    auto* out = bad_request.add_field_violations();
    out->set_field(violation.field);
    out->set_description(violation.description);
  }
  std::string message = absl::StrJoin(parts, "; ");
  if (violations.size() > parts.size()) {
    absl::StrAppend(&message, "; and ", violations.size() - parts.size(), " more");
  }
  absl::Status status = absl::InvalidArgumentError(message);
  AddDetail(status, bad_request);
  for (const v1::ShapeViolation& shape : shapes) AddDetail(status, shape);
  std::map<std::string, std::string> metadata;
  if (!violations.empty()) metadata["field"] = violations.front().field;
  return WithErrorInfo(std::move(status), shapes.empty() ? "INVALID_FIELD" : "INVALID_SHAPE",
                       metadata);
}

absl::Status InvalidField(absl::string_view field, absl::string_view description) {
  return InvalidFields({{.field = std::string(field), .description = std::string(description)}});
}

absl::Status NotFound(absl::string_view type, absl::string_view name) {
  return WithErrorInfo(
      WithResource(absl::NotFoundError(absl::StrCat("there is no ", type, " \"", name, "\"")), type,
                   name),
      "RESOURCE_NOT_FOUND", ResourceMetadata(type, name));
}

absl::Status AlreadyExists(absl::string_view reason, absl::string_view type, absl::string_view name,
                           absl::string_view message) {
  return WithErrorInfo(WithResource(absl::AlreadyExistsError(message), type, name), reason,
                       ResourceMetadata(type, name));
}

absl::Status FailedPrecondition(absl::string_view reason, absl::string_view subject,
                                absl::string_view message) {
  absl::Status status = absl::FailedPreconditionError(message);
  google::rpc::PreconditionFailure failure;
  auto* violation = failure.add_violations();
  violation->set_type(std::string(reason));
  violation->set_subject(Shortened(subject, 512));
  violation->set_description(Shortened(message, 512));
  AddDetail(status, failure);
  return WithErrorInfo(std::move(status), reason, {{"subject", std::string(subject)}});
}

absl::Status Aborted(absl::string_view reason, absl::string_view message,
                     const std::map<std::string, std::string>& metadata) {
  return WithErrorInfo(absl::AbortedError(message), reason, metadata);
}

absl::Status ResourceExhausted(absl::string_view reason, int64_t limit, absl::string_view message) {
  return WithErrorInfo(absl::ResourceExhaustedError(message), reason,
                       {{"limit", absl::StrCat(limit)}});
}

absl::Status Unavailable(absl::string_view reason, absl::string_view message,
                         absl::Duration retry_delay) {
  absl::Status status = absl::UnavailableError(message);
  google::rpc::RetryInfo retry;
  absl::Duration rest;
  retry.mutable_retry_delay()->set_seconds(
      absl::IDivDuration(retry_delay, absl::Seconds(1), &rest));
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  AddDetail(status, retry);
  return WithErrorInfo(std::move(status), reason);
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  if (Details(status).reason.empty()) {
    return ToGrpc(WithErrorInfo(status, absl::StatusCodeToString(status.code())));
  }
  google::rpc::Status wire;
  wire.set_code(static_cast<int>(status.code()));
  wire.set_message(Shortened(status.message(), kMessageBytesMax));
  size_t bytes = 0;
  for (const auto& [key, payload] : SortedPayloads(status)) {
    // Payloads of other libraries (gRPC's own, for one) are not messages and stay here.
    if (!absl::StartsWith(key.url, kTypePrefix)) continue;
    std::string value(payload);
    google::rpc::BadRequest request;
    if (Decode(key.url, payload, request)) value = BoundedBadRequest(request, kDetailBytesMax / 2);
    if (bytes + key.url.size() + value.size() > kDetailBytesMax) continue;
    bytes += key.url.size() + value.size();
    auto* any = wire.add_details();
    any->set_type_url(key.url);
    any->set_value(std::move(value));
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), wire.message(),
                      wire.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  absl::Status result(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status wire;
  if (!wire.ParseFromString(status.error_details())) return result;
  for (const auto& any : wire.details()) {
    AddPayload(result, any.type_url(), absl::Cord(any.value()));
  }
  return result;
}

ErrorDetails Details(const absl::Status& status) {
  ErrorDetails details;
  for (const auto& [key, payload] : SortedPayloads(status)) Collect(key.url, payload, details);
  return details;
}

ErrorDetails Details(const grpc::Status& status) { return Details(FromGrpc(status)); }

}  // namespace ringmaster

#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"
#include "ringmaster/v1/errors.pb.h"

// The one place where absl::Status and grpc::Status meet. Details (google.rpc.ErrorInfo,
// BadRequest, RetryInfo, ResourceInfo, PreconditionFailure and ringmaster.v1's own) travel inside
// our code as absl::Status payloads under "type.googleapis.com/<message name>", and on the wire as
// google.rpc.Status in the call's trailing metadata, which every stock client library decodes. All
// functions are pure and thread-safe.
namespace ringmaster {

// ErrorInfo.domain of every error we make.
inline constexpr char kErrorDomain[] = "ringmaster";

struct FieldViolation {
  // Path of the field in the request, for example "training_job.spec.model.dim".
  std::string field;
  // What is wrong with it: value, limit, what would be right.
  std::string description;
};

// `status` with an ErrorInfo; `reason` is upper snake case, at most 63 characters. An ErrorInfo
// that is there already is replaced. An OK status is returned as it is.
absl::Status WithErrorInfo(absl::Status status, absl::string_view reason,
                           const std::map<std::string, std::string>& metadata = {});

// INVALID_ARGUMENT with BadRequest and, for size rules, ShapeViolations; the message names every
// field. REQUIRES: `violations` is not empty. Reason INVALID_SHAPE when `shapes` is not empty, else
// INVALID_FIELD.
absl::Status InvalidFields(const std::vector<FieldViolation>& violations,
                           const std::vector<v1::ShapeViolation>& shapes = {});

// INVALID_ARGUMENT for one field.
absl::Status InvalidField(absl::string_view field, absl::string_view description);

// NOT_FOUND with ResourceInfo; `type` is "training job", "worker" or "checkpoint". Reason
// RESOURCE_NOT_FOUND.
absl::Status NotFound(absl::string_view type, absl::string_view name);

// ALREADY_EXISTS with ResourceInfo.
absl::Status AlreadyExists(absl::string_view reason, absl::string_view type, absl::string_view name,
                           absl::string_view message);

// FAILED_PRECONDITION with PreconditionFailure about `subject`, a resource name.
absl::Status FailedPrecondition(absl::string_view reason, absl::string_view subject,
                                absl::string_view message);

// ABORTED: the caller acted on an old state and must read again.
absl::Status Aborted(absl::string_view reason, absl::string_view message,
                     const std::map<std::string, std::string>& metadata = {});

// RESOURCE_EXHAUSTED; `limit` is put into the metadata.
absl::Status ResourceExhausted(absl::string_view reason, int64_t limit, absl::string_view message);

// UNAVAILABLE with RetryInfo.
absl::Status Unavailable(absl::string_view reason, absl::string_view message,
                         absl::Duration retry_delay);

// For the server's replies. Codes map one to one. An error without ErrorInfo gets one whose reason
// is the code's name. Message and details are shortened where they would pass the 8 KiB of metadata
// that clients accept by default.
grpc::Status ToGrpc(const absl::Status& status);

// For clients: the inverse. Details that do not parse are dropped, code and message kept.
absl::Status FromGrpc(const grpc::Status& status);

// The details of an error, decoded; empty members where a detail is absent.
struct ErrorDetails {
  std::string reason;
  std::string domain;
  std::map<std::string, std::string> metadata;
  std::vector<FieldViolation> fields;
  std::vector<v1::ShapeViolation> shapes;
  std::optional<absl::Duration> retry_delay;
  std::string resource_type;
  std::string resource_name;
};

ErrorDetails Details(const absl::Status& status);
ErrorDetails Details(const grpc::Status& status);

}  // namespace ringmaster

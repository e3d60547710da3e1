#include "proto/rpc_status.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

constexpr char kErrorInfoUrl[] = "type.googleapis.com/google.rpc.ErrorInfo";

v1::ShapeViolation Shape(const std::string& field, int64_t given) {
  v1::ShapeViolation shape;
  shape.set_field(field);
  shape.set_given(given);
  shape.set_required_multiple(8);
  shape.add_nearest_valid(given - 1);
  shape.set_rule("dim % heads == 0");
  return shape;
}

TEST(RpcStatusTest, OkStaysOk) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
  EXPECT_TRUE(WithErrorInfo(absl::OkStatus(), "ANY").ok());
}

TEST(RpcStatusTest, CodesMapOneToOne) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "text");
    const grpc::Status wire = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(wire.error_message(), "text");
    EXPECT_EQ(FromGrpc(wire).code(), status.code());
  }
}

TEST(RpcStatusTest, AnErrorWithoutReasonGetsTheNameOfItsCode) {
  const ErrorDetails details = Details(ToGrpc(absl::DataLossError("shard is damaged")));
  EXPECT_EQ(details.reason, "DATA_LOSS");
  EXPECT_EQ(details.domain, "ringmaster");
}

TEST(RpcStatusTest, InvalidFieldsNamesEachFieldAndRoundTrips) {
  const absl::Status status = InvalidFields(
      {{.field = "spec.model.dim", .description = "is 65, must be a multiple of heads (8)"},
       {.field = "spec.steps", .description = "is 0, must be at least 1"}},
      {Shape("spec.model.dim", 65), Shape("spec.model.ffn_dim", 9)});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("spec.model.dim: is 65"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("spec.steps: is 0"));

  const grpc::Status wire = ToGrpc(status);
  const ErrorDetails details = Details(wire);
  EXPECT_EQ(details.reason, "INVALID_SHAPE");
  EXPECT_THAT(details.metadata, UnorderedElementsAre(Pair("field", "spec.model.dim")));
  ASSERT_EQ(details.fields.size(), 2u);
  EXPECT_EQ(details.fields[1].field, "spec.steps");
  ASSERT_EQ(details.shapes.size(), 2u);
  EXPECT_EQ(details.shapes[0].given(), 65);
  EXPECT_THAT(details.shapes[0].nearest_valid(), ElementsAre(64));
  EXPECT_EQ(details.shapes[1].field(), "spec.model.ffn_dim");

  // A second trip changes nothing.
  EXPECT_EQ(ToGrpc(FromGrpc(wire)).error_details(), wire.error_details());
}

TEST(RpcStatusTest, ManyShapesKeepTheirOrder) {
  std::vector<v1::ShapeViolation> shapes;
  for (int n = 0; n < 25; ++n) shapes.push_back(Shape(absl::StrCat("f", n), n));
  const auto details = Details(InvalidFields({{.field = "f", .description = "d"}}, shapes));
  ASSERT_EQ(details.shapes.size(), 25u);
  for (int n = 0; n < 25; ++n) EXPECT_EQ(details.shapes[n].given(), n);
}

TEST(RpcStatusTest, WireStatusIsTheStandardMessage) {
  google::rpc::Status wire;
  ASSERT_TRUE(wire.ParseFromString(ToGrpc(NotFound("worker", "workers/a")).error_details()));
  EXPECT_EQ(wire.code(), 5);
  EXPECT_EQ(wire.message(), "there is no worker \"workers/a\"");
  ASSERT_EQ(wire.details_size(), 2);
  EXPECT_EQ(wire.details(0).type_url(), kErrorInfoUrl);
}

TEST(RpcStatusTest, BuildersCarryTheirDetails) {
  const ErrorDetails missing = Details(NotFound("worker", "workers/a"));
  EXPECT_EQ(missing.reason, "RESOURCE_NOT_FOUND");
  EXPECT_EQ(missing.resource_type, "worker");
  EXPECT_EQ(missing.resource_name, "workers/a");

  const absl::Status draining = Unavailable("DRAINING", "draining", absl::Milliseconds(1500));
  EXPECT_EQ(draining.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Details(ToGrpc(draining)).retry_delay, absl::Milliseconds(1500));

  const absl::Status changed = Aborted("ETAG_CHANGED", "read again", {{"etag", "7"}});
  EXPECT_EQ(changed.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Details(ToGrpc(changed)).metadata.at("etag"), "7");

  const absl::Status taken = AlreadyExists("ID_TAKEN", "training job", "x", "the id is taken");
  EXPECT_EQ(taken.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Details(taken).resource_name, "x");

  const absl::Status state = FailedPrecondition("JOB_NOT_TERMINAL", "x", "job x is running");
  EXPECT_EQ(state.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Details(state).reason, "JOB_NOT_TERMINAL");

  const absl::Status full = ResourceExhausted("TOO_MANY_JOBS", 10, "there are 10 jobs already");
  EXPECT_THAT(Details(full).metadata, ElementsAre(Pair("limit", "10")));
}

// Clients refuse a reply with more than 8 KiB of metadata, and would then not see the error at all.
TEST(RpcStatusTest, HugeErrorsFitIntoTheMetadataLimitAndKeepTheReason) {
  std::vector<FieldViolation> violations;
  for (int n = 0; n < 500; ++n) {
    violations.push_back(
        {.field = absl::StrCat("field", n), .description = std::string(2000, 'x')});
  }
  std::vector<v1::ShapeViolation> shapes(200, Shape(std::string(100, 's'), 3));
  const grpc::Status wire = ToGrpc(InvalidFields(violations, shapes));
  EXPECT_LT(wire.error_details().size() * 4 / 3 + wire.error_message().size(), 8000u);
  const ErrorDetails details = Details(wire);
  EXPECT_EQ(details.reason, "INVALID_SHAPE");
  ASSERT_FALSE(details.fields.empty());
  EXPECT_EQ(details.fields[0].field, "field0");
}

TEST(RpcStatusTest, ShorteningKeepsValidUtf8) {
  std::string text;
  for (int n = 0; n < 1000; ++n) text += "\xC3\xA9";
  const grpc::Status wire = ToGrpc(absl::InternalError("a" + text));
  google::rpc::Status decoded;
  EXPECT_TRUE(decoded.ParseFromString(wire.error_details()));
  EXPECT_THAT(wire.error_message(), ::testing::EndsWith("\xC3\xA9..."));
}

TEST(RpcStatusTest, ForeignPayloadsDoNotTravel) {
  absl::Status status = absl::InternalError("x");
  status.SetPayload("grpc.internal", absl::Cord("secret"));
  EXPECT_THAT(ToGrpc(status).error_details(), ::testing::Not(HasSubstr("secret")));
}

TEST(RpcStatusTest, DamagedDetailsAreDropped) {
  const absl::Status status =
      FromGrpc(grpc::Status(grpc::StatusCode::NOT_FOUND, "gone", "\xff\xff not a message"));
  EXPECT_EQ(status, absl::NotFoundError("gone"));
}

}  // namespace
}  // namespace ringmaster

#include "base/http/http_request.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

HttpRequest Parsed(const std::string& head) {
  const absl::StatusOr<HttpRequest> request = ParseHttpRequest(head);
  EXPECT_TRUE(request.ok()) << request.status();
  return request.value_or(HttpRequest());
}

TEST(HttpRequestTest, TellsWhatIsAskedFor) {
  const HttpRequest request = Parsed(
      "GET /jobs/vision/bible?state=running&page=MTI=&state=queued&flag&=x HTTP/1.1\r\nHost: "
      "a:1\r\n"
      "AUTHORIZATION:\t Bearer x \r\nX-Empty:");
  EXPECT_EQ(request.method, "GET");
  EXPECT_EQ(request.path, "/jobs/vision/bible");
  EXPECT_THAT(request.parameters, ElementsAre(Pair("", "x"), Pair("flag", ""), Pair("page", "MTI="),
                                              Pair("state", "queued")));
  EXPECT_EQ(request.authorization, "Bearer x");
  EXPECT_EQ(request.host, "a:1");
  const HttpRequest plain = Parsed("HEAD / HTTP/1.0");
  EXPECT_EQ(plain.path, "/");
  EXPECT_THAT(plain.parameters, IsEmpty());
  EXPECT_EQ(plain.authorization, "");
  EXPECT_EQ(Parsed("GET /a??b=c HTTP/1.1").parameters.at("?b"), "c");
  // Escapes stay what they are.
  EXPECT_EQ(Parsed("GET /%2e%2e/%00 HTTP/1.1").path, "/%2e%2e/%00");
}

TEST(HttpRequestTest, RefusesWhatIsNone) {
  for (const std::string head :
       {"", "\r\n", "GET", "GET /", "GET / HTTP/2", "GET  / HTTP/1.1", "GET / HTTP/1.1 ",
        "G(T / HTTP/1.1", " / HTTP/1.1", "GET * HTTP/1.1", "GET http://elsewhere/ HTTP/1.1",
        "GET elsewhere HTTP/1.1", "GET /\x01 HTTP/1.1", "GET /\xc3\xa4 HTTP/1.1",
        "GET /\t HTTP/1.1"}) {
    EXPECT_EQ(ParseHttpRequest(head).status().code(), absl::StatusCode::kInvalidArgument) << head;
  }
  for (const std::string header :
       {"no colon", ": x", "A b: x", " Authorization: Bearer x", "A: x\r\n folded",
        "Authorization: Bearer x\r\nauthorization: Bearer y", "Host: a\r\nHost: b",
        "Authorization:\r\nAuthorization: Bearer x", "Host: \r\nHost: a", "A: \x01", "A: b\nB: c",
        "A: \x7f"}) {
    const auto request = ParseHttpRequest(absl::StrCat("GET / HTTP/1.1\r\n", header));
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << header;
  }
}

}  // namespace
}  // namespace ringmaster

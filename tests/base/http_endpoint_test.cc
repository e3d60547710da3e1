#include "base/http/http_endpoint.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/http_connection.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class HttpEndpointTest : public ::testing::Test {
 protected:
  HttpEndpointTest() {
    auto endpoint = HttpEndpoint::Start(
        "127.0.0.1:0", {{"/page", [] { return HttpReply{.body = "the page\n"}; }}});
    EXPECT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = std::move(*endpoint);
  }

  std::string Ask(const std::string& request) {
    HttpConnection connection(endpoint_->address());
    connection.Write(request);
    return connection.Read();
  }

  std::unique_ptr<HttpEndpoint> endpoint_;
};

TEST_F(HttpEndpointTest, AnswersGetAndHeadOfKnownPaths) {
  const std::string page = Ask("GET /page?a=b HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(page, StartsWith("HTTP/1.1 200 OK"));
  EXPECT_THAT(page, HasSubstr("\r\n\r\nthe page\n"));
  const std::string head = Ask("HEAD /page HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("Content-Length: 9"));
  EXPECT_THAT(head, ::testing::EndsWith("\r\n\r\n"));
  EXPECT_THAT(Ask("GET /../page/.. HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("404"));
  EXPECT_THAT(Ask("POST /page HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"), HasSubstr("405"));
}

// Whatever it answers, it must be there for the next one.
TEST_F(HttpEndpointTest, SurvivesWhatIsNoSensibleRequest) {
  const std::vector<std::string> requests = {
      "GET * HTTP/1.1\r\nHost: x\r\n\r\n",
      "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
      "GET http://elsewhere/page HTTP/1.1\r\nHost: x\r\n\r\n",
      "CONNECT elsewhere:1 HTTP/1.1\r\nHost: x\r\n\r\n",
      "GET /%00%ff%zz HTTP/1.1\r\nHost: x\r\n\r\n",
      "GET /page HTTP/9.9\r\n\r\n",
      "\r\n\r\n",
      std::string("\x16\x03\x01\x00\x00\x01", 6) + "\r\n\r\n",
      "GET /page HTTP/1.1\r\nA: " + std::string(1 << 16, 'a') + "\r\n\r\n",
  };
  for (const std::string& request : requests) {
    HttpConnection connection(endpoint_->address());
    connection.Write(request);
    EXPECT_THAT(Ask("GET /page HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("200 OK"))
        << request.substr(0, 40);
  }
}

TEST_F(HttpEndpointTest, AnswersWhileOthersSayNothing) {
  std::vector<std::unique_ptr<HttpConnection>> silent;
  for (int i = 0; i < 4; ++i) {
    silent.push_back(std::make_unique<HttpConnection>(endpoint_->address()));
    silent.back()->Write("GET /page");
  }
  EXPECT_THAT(Ask("GET /page HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("200 OK"));
  // It did not wait until the others ran into their time-out.
  for (const auto& connection : silent) EXPECT_TRUE(connection->IsOpen());
}

TEST(HttpEndpointStartTest, TakesOneAddressOnly) {
  for (const char* address : {"", "80", "localhost", "127.0.0.1:x", "127.0.0.1:70000",
                              "127.0.0.1:0,0.0.0.0:0", "127.0.0.1:0,127.0.0.1:0"}) {
    EXPECT_EQ(HttpEndpoint::Start(address, {}).status().code(), absl::StatusCode::kInvalidArgument)
        << address;
  }
  auto first = HttpEndpoint::Start("127.0.0.1:0", {});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(HttpEndpoint::Start((*first)->address(), {}).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace ringmaster

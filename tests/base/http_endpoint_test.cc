#include "base/http/http_endpoint.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class Connection {
 public:
  explicit Connection(const std::string& address) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    const size_t colon = address.rfind(':');
    int port = 0;
    EXPECT_TRUE(absl::SimpleAtoi(address.substr(colon + 1), &port));
    sockaddr_in target = {};
    target.sin_family = AF_INET;
    target.sin_port = htons(static_cast<uint16_t>(port));
    inet_pton(AF_INET, address.substr(0, colon).c_str(), &target.sin_addr);
    EXPECT_EQ(connect(socket_, reinterpret_cast<sockaddr*>(&target), sizeof(target)), 0);
  }
  ~Connection() { close(socket_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Write(const std::string& text) {
    EXPECT_EQ(send(socket_, text.data(), text.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(text.size()));
  }
  // Everything until the server closes.
  std::string Read() {
    std::string answer;
    char block[4096];
    for (ssize_t count; (count = read(socket_, block, sizeof(block))) > 0;)
      answer.append(block, count);
    return answer;
  }
  bool IsOpen() const {
    char byte = 0;
    return recv(socket_, &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0;
  }

 private:
  const int socket_;
};

class HttpEndpointTest : public ::testing::Test {
 protected:
  HttpEndpointTest() {
    auto endpoint = HttpEndpoint::Start(
        "127.0.0.1:0", {{"/page", [] { return HttpReply{.body = "the page\n"}; }}});
    EXPECT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = std::move(*endpoint);
  }

  std::string Ask(const std::string& request) {
    Connection connection(endpoint_->address());
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
    Connection connection(endpoint_->address());
    connection.Write(request);
    EXPECT_THAT(Ask("GET /page HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("200 OK"))
        << request.substr(0, 40);
  }
}

TEST_F(HttpEndpointTest, AnswersWhileOthersSayNothing) {
  std::vector<std::unique_ptr<Connection>> silent;
  for (int i = 0; i < 4; ++i) {
    silent.push_back(std::make_unique<Connection>(endpoint_->address()));
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

#include "base/http/http_endpoint.h"

#include <atomic>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/steady_now.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/http_connection.h"

namespace ringmaster {
namespace {

using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr int kThreads = 32;
constexpr char kGet[] = "GET /page HTTP/1.1\r\nHost: x\r\n\r\n";
constexpr char kProbe[] = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";

HttpReply ThePage(const HttpRequest& request) {
  if (request.path != "/page") return {.code = 404, .headers = {{"X-Why", request.path}}};
  return {.body = "the page\n"};
}

class HttpEndpointTest : public ::testing::Test {
 protected:
  HttpEndpointTest() {
    auto endpoint = HttpEndpoint::Start("127.0.0.1:0", ThePage);
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

TEST_F(HttpEndpointTest, RefusesLargeRequestsAndSaysSo) {
  const std::string large = Ask("GET /page HTTP/1.1\r\nA: " + std::string(40'000, 'a'));
  EXPECT_THAT(large, StartsWith("HTTP/1.1 431"));
  EXPECT_THAT(Ask("GET /page HTTP/1.1\r\nA: " + std::string(15'000, 'a') + "\r\n\r\n"),
              HasSubstr("200 OK"));
  EXPECT_THAT(
      Ask("POST /page HTTP/1.1\r\nContent-Length: 40000\r\n\r\n" + std::string(40'000, 'a')),
      StartsWith("HTTP/1.1 405"));
}

TEST_F(HttpEndpointTest, TellsTheHandlerWhoAsks) {
  auto endpoint = HttpEndpoint::Start("127.0.0.1:0", [](const HttpRequest& request) {
    return HttpReply{.body = request.peer + " " + request.authorization};
  });
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  HttpConnection connection((*endpoint)->address());
  connection.Write("GET / HTTP/1.1\r\nAuthorization: Bearer x\r\n\r\n");
  EXPECT_THAT(connection.Read(), ContainsRegex("\nipv4:127.0.0.1:[0-9]+ Bearer x$"));
}

// More of them than there are threads: the oldest have to go.
TEST_F(HttpEndpointTest, WhoSaysNothingKeepsNobodyOut) {
  std::vector<std::unique_ptr<HttpConnection>> silent;
  for (int i = 0; i < 3 * kThreads; ++i) {
    silent.push_back(std::make_unique<HttpConnection>(endpoint_->address()));
    silent.back()->Write("GET /page");
  }
  EXPECT_THAT(Ask("GET /page HTTP/1.1\r\nHost: x\r\n\r\n"), HasSubstr("200 OK"));
  EXPECT_FALSE(silent.front()->IsOpen());
  EXPECT_TRUE(silent.back()->IsOpen());
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

// One of another address, who is slow, stays while they come and go.
TEST_F(HttpEndpointTest, WhoOpensManyConnectionsEndsHisOwn) {
  HttpConnection honest(endpoint_->address(), "127.0.0.2");
  honest.Write("GET /page HTTP/1.1\r\n");
  std::vector<std::unique_ptr<HttpConnection>> silent;
  for (int i = 0; i < 3 * kThreads; ++i) {
    silent.push_back(std::make_unique<HttpConnection>(endpoint_->address()));
  }
  EXPECT_TRUE(silent.front()->HasNews(/*wait_ms=*/30'000));
  honest.Write("Host: x\r\n\r\n");
  EXPECT_THAT(honest.Read(), HasSubstr("200 OK"));
}

// An endpoint whose "/page" waits until it is let go.
class SlowHandlerTest : public ::testing::Test {
 protected:
  SlowHandlerTest() {
    auto endpoint = HttpEndpoint::Start("127.0.0.1:0", [this](const HttpRequest& request) {
      if (request.path == "/large") return HttpReply{.body = std::string(large_bytes_, 'x')};
      if (request.path == "/page") {
        ++held_;
        go_.wait();
      }
      return HttpReply{.body = "done\n"};
    });
    EXPECT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = std::move(*endpoint);
  }
  // The handlers use what is here.
  ~SlowHandlerTest() override {
    Go();
    endpoint_.reset();
  }

  void Go() {
    if (!gone_) release_.set_value();
    gone_ = true;
  }
  // As many as may be in the handler, and are.
  std::vector<std::unique_ptr<HttpConnection>> FillTheHandler() {
    std::vector<std::unique_ptr<HttpConnection>> held;
    for (int i = 0; i < kThreads * 3 / 4; ++i) {
      held.push_back(std::make_unique<HttpConnection>(endpoint_->address()));
      held.back()->Write(kGet);
    }
    const absl::Time end = SteadyNow() + absl::Seconds(30);
    while (held_ < static_cast<int>(held.size()) && SteadyNow() < end) std::this_thread::yield();
    return held;
  }
  std::string Ask(const std::string& request) const {
    HttpConnection connection(endpoint_->address());
    connection.Write(request);
    return connection.Read();
  }

  std::atomic<int> held_ = 0;
  size_t large_bytes_ = HttpEndpoint::kBodyBytesMax;
  std::promise<void> release_;
  std::shared_future<void> go_ = release_.get_future().share();
  bool gone_ = false;
  std::unique_ptr<HttpEndpoint> endpoint_;
};

TEST_F(SlowHandlerTest, ProbesAreAnsweredAndAnswersAreNotLost) {
  const auto held = FillTheHandler();
  EXPECT_EQ(held_, static_cast<int>(held.size()));
  EXPECT_THAT(Ask(kGet), StartsWith("HTTP/1.1 503"));
  // As many silent ones as would end all that are in the handler.
  std::vector<std::unique_ptr<HttpConnection>> silent;
  for (int i = 0; i < 2 * kThreads; ++i) {
    silent.push_back(std::make_unique<HttpConnection>(endpoint_->address()));
    EXPECT_THAT(Ask(kProbe), HasSubstr("200 OK"));
  }
  Go();
  for (const auto& connection : held) EXPECT_THAT(connection->Read(), HasSubstr("done\n"));
}

TEST_F(SlowHandlerTest, WhoReadsNothingKeepsNobodyOut) {
  std::vector<std::unique_ptr<HttpConnection>> readers;
  for (int i = 0; i < 2 * kThreads; ++i) {
    readers.push_back(
        std::make_unique<HttpConnection>(endpoint_->address(), "127.0.0.1", /*read_bytes=*/4096));
    readers.back()->Write("GET /large HTTP/1.1\r\n\r\n");
    // It has got as far as its answer.
    EXPECT_TRUE(readers.back()->HasNews(30'000)) << i;
    EXPECT_THAT(Ask(kProbe), HasSubstr("200 OK")) << i;
  }
  EXPECT_LT(readers.front()->Read().size(), large_bytes_);
}

TEST_F(SlowHandlerTest, TooLargeAnAnswerIsNone) {
  EXPECT_GT(Ask("GET /large HTTP/1.1\r\n\r\n").size(), large_bytes_);
  ++large_bytes_;
  const std::string refused = Ask("GET /large HTTP/1.1\r\n\r\n");
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 500"));
  EXPECT_LT(refused.size(), 1000u);
}

TEST(HttpEndpointTimeTest, WhoSendsOneByteAfterTheOtherIsNotWaitedFor) {
  auto endpoint = HttpEndpoint::Start("127.0.0.1:0", ThePage, nullptr,
                                      {.threads = 4, .read_time = absl::Milliseconds(100)});
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  HttpConnection connection((*endpoint)->address());
  connection.Write("GET /page HTTP/1.1\r\nA: ");
  const absl::Time begin = SteadyNow();
  while (!connection.HasNews(/*wait_ms=*/5) && SteadyNow() - begin < absl::Seconds(4)) {
    connection.Write("a");
  }
  EXPECT_LT(SteadyNow() - begin, absl::Seconds(4));
  EXPECT_THAT(connection.Read(), Not(HasSubstr("HTTP/1.1")));
}

TEST(HttpEndpointStartTest, TakesOneAddressOnly) {
  for (const char* address :
       {"", "80", "localhost", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:0,0.0.0.0:0",
        "127.0.0.1:0,127.0.0.1:0", ":80", "no.such.host.invalid:0"}) {
    EXPECT_EQ(HttpEndpoint::Start(address, ThePage).status().code(),
              absl::StatusCode::kInvalidArgument)
        << address;
  }
  auto first = HttpEndpoint::Start("127.0.0.1:0", ThePage);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(HttpEndpoint::Start((*first)->address(), ThePage).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace ringmaster

#include <fcntl.h>
#include <openssl/ssl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/http/http_endpoint.h"
#include "base/http/pem.h"
#include "base/read_file.h"
#include "base/steady_now.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/certificate.h"
#include "tests/testing/http_connection.h"
#include "tests/testing/temporary_directory.h"

namespace ringmaster {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

// TLS over one connection, by a client that trusts everybody.
class TlsClient {
 public:
  explicit TlsClient(const std::string& address, int version_max = TLS1_3_VERSION)
      : connection_(address),
        context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free),
        tls_(nullptr, SSL_free) {
    SSL_CTX_set_min_proto_version(context_.get(), TLS1_VERSION);
    SSL_CTX_set_max_proto_version(context_.get(), version_max);
    tls_.reset(SSL_new(context_.get()));
    SSL_set_security_level(tls_.get(), 0);
    SSL_set_fd(tls_.get(), connection_.socket());
    connected_ = SSL_connect(tls_.get()) == 1;
  }

  bool connected() const { return connected_; }
  // Whose certificate the server has shown.
  std::string ServerName() const {
    X509* const shown = SSL_get1_peer_certificate(tls_.get());
    if (shown == nullptr) return "";
    char name[64] = {};
    X509_NAME_get_text_by_NID(X509_get_subject_name(shown), NID_commonName, name, sizeof(name));
    X509_free(shown);
    return name;
  }
  std::string Ask(const std::string& request) {
    EXPECT_EQ(SSL_write(tls_.get(), request.data(), static_cast<int>(request.size())),
              static_cast<int>(request.size()));
    std::string answer;
    char block[4096];
    for (int count; (count = SSL_read(tls_.get(), block, sizeof(block))) > 0;) {
      answer.append(block, count);
    }
    return answer;
  }

 private:
  HttpConnection connection_;
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_;
  std::unique_ptr<SSL, decltype(&SSL_free)> tls_;
  bool connected_ = false;
};

constexpr char kGet[] = "GET /page HTTP/1.1\r\nHost: x\r\n\r\n";

class HttpsEndpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteCertificate("first", Path("tls.crt"), Path("tls.key"));
    auto tls = ServerTls::Load(Path("tls.crt"), Path("tls.key"));
    ASSERT_TRUE(tls.ok()) << tls.status();
    auto endpoint = HttpEndpoint::Start(
        "127.0.0.1:0", [this](const HttpRequest&) { return HttpReply{.body = body_}; },
        *std::move(tls));
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = std::move(*endpoint);
  }

  std::string Path(const std::string& name) const { return temporary_.path() + "/" + name; }

  const TemporaryDirectory temporary_;
  std::string body_ = "the page\n";
  std::unique_ptr<HttpEndpoint> endpoint_;
};

TEST_F(HttpsEndpointTest, AnswersUnderTls) {
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    TlsClient client(endpoint_->address(), version);
    ASSERT_TRUE(client.connected());
    EXPECT_EQ(client.ServerName(), "first");
    const std::string page = client.Ask(kGet);
    EXPECT_THAT(page, StartsWith("HTTP/1.1 200 OK"));
    EXPECT_THAT(page, HasSubstr("\r\n\r\nthe page\n"));
  }
  EXPECT_FALSE(TlsClient(endpoint_->address(), TLS1_1_VERSION).connected());
}

TEST_F(HttpsEndpointTest, LargeAnswersArriveWhole) {
  body_ = std::string(HttpEndpoint::kBodyBytesMax, 'x');
  const std::string page = TlsClient(endpoint_->address()).Ask(kGet);
  EXPECT_TRUE(page.size() > body_.size() &&
              page.compare(page.size() - body_.size(), body_.size(), body_) == 0);
}

TEST_F(HttpsEndpointTest, SaysNothingInTheClear) {
  HttpConnection connection(endpoint_->address());
  connection.Write(kGet);
  EXPECT_THAT(connection.Read(), Not(HasSubstr("HTTP/1.1")));
  EXPECT_TRUE(TlsClient(endpoint_->address()).connected());
}

TEST_F(HttpsEndpointTest, WhoLeavesInTheMiddleOfItHarmsNobody) {
  body_ = std::string(HttpEndpoint::kBodyBytesMax, 'x');
  for (int i = 0; i < 64; ++i) {
    HttpConnection(endpoint_->address()).Write("\x16\x03\x01");
    EXPECT_TRUE(TlsClient(endpoint_->address()).connected());
  }
  EXPECT_THAT(TlsClient(endpoint_->address()).Ask(kGet), StartsWith("HTTP/1.1 200 OK"));
}

TEST(ServerTlsTest, RefusesFilesThatDoNotFit) {
  const TemporaryDirectory temporary;
  const std::string path = temporary.path();
  WriteCertificate("first", path + "/1.crt", path + "/1.key");
  WriteCertificate("second", path + "/2.crt", path + "/2.key");
  EXPECT_TRUE(ServerTls::Load(path + "/1.crt", path + "/1.key").ok());
  for (const auto& [certificate, key] :
       {std::pair("/1.crt", "/2.key"), std::pair("/1.key", "/1.key"), std::pair("/1.crt", "/none"),
        std::pair("/none", "/1.key"), std::pair("/1.crt", "/1.crt"), std::pair("", "/1.key")}) {
    EXPECT_EQ(ServerTls::Load(path + certificate, path + key).status().code(),
              absl::StatusCode::kInvalidArgument)
        << certificate << " " << key;
  }
}

TEST(ServerTlsTest, TakesUpReplacedFilesOnceTheyFit) {
  const TemporaryDirectory temporary;
  const std::string certificate = temporary.path() + "/tls.crt";
  const std::string key = temporary.path() + "/tls.key";
  WriteCertificate("first", certificate, key);
  absl::Time now = absl::UnixEpoch();
  auto tls = ServerTls::Load(certificate, key, [&now] { return now; });
  ASSERT_TRUE(tls.ok()) << tls.status();
  const auto name = [&] {
    const auto context = (*tls)->Context();
    char text[64] = {};
    X509_NAME_get_text_by_NID(X509_get_subject_name(SSL_CTX_get0_certificate(context.get())),
                              NID_commonName, text, sizeof(text));
    return std::string(text);
  };
  WriteCertificate("second", certificate, temporary.path() + "/second.key");
  EXPECT_EQ(name(), "first");
  now += absl::Seconds(6);
  EXPECT_EQ(name(), "first");  // The key is not there yet.
  ASSERT_EQ(std::rename((temporary.path() + "/second.key").c_str(), key.c_str()), 0);
  now += absl::Seconds(6);
  EXPECT_EQ(name(), "second");
  std::ofstream(certificate) << "";
  now += absl::Seconds(6);
  EXPECT_EQ(name(), "second");
}

// It hangs for who looks at the files, and for nobody else.
TEST(ServerTlsTest, OneThreadWaitsForADiskThatHangs) {
  const TemporaryDirectory temporary;
  const std::string certificate = temporary.path() + "/tls.crt";
  const std::string key = temporary.path() + "/tls.key";
  WriteCertificate("first", certificate, key);
  std::atomic<int> seconds = 0;
  auto tls = ServerTls::Load(certificate, key,
                             [&] { return absl::UnixEpoch() + absl::Seconds(seconds.load()); });
  ASSERT_TRUE(tls.ok()) << tls.status();
  ASSERT_EQ(std::remove(key.c_str()), 0);
  ASSERT_EQ(mkfifo(key.c_str(), 0600), 0);
  seconds = 6;
  std::vector<std::future<void>> calls;
  for (int i = 0; i < 8; ++i) {
    calls.push_back(std::async(std::launch::async, [&] { EXPECT_NE((*tls)->Context(), nullptr); }));
  }
  const auto ended = [&] {
    return std::count_if(calls.begin(), calls.end(), [](const auto& call) {
      return call.wait_for(std::chrono::milliseconds(1)) == std::future_status::ready;
    });
  };
  const absl::Time end = SteadyNow() + absl::Seconds(10);
  while (ended() < 7 && SteadyNow() < end) continue;
  EXPECT_EQ(ended(), 7);
  // What comes of the pipe is no key, for whoever still waits.
  while (ended() < 8) {
    const int writer = open(key.c_str(), O_WRONLY | O_NONBLOCK);
    if (writer >= 0) close(writer);
  }
}

TEST(PemTest, ReadsWholeChainsOnly) {
  const TemporaryDirectory temporary;
  const std::string path = temporary.path();
  WriteCertificate("first", path + "/1.crt", path + "/1.key");
  WriteCertificate("second", path + "/2.crt", path + "/2.key");
  const std::string first = ReadFile(path + "/1.crt").value();
  const std::string second = ReadFile(path + "/2.crt").value();
  EXPECT_THAT(CertificatesIn(first + second), SizeIs(2));
  EXPECT_THAT(CertificatesIn(first + "words\n"), SizeIs(1));
  EXPECT_THAT(CertificatesIn(first + second.substr(0, second.size() / 2)), IsEmpty());
  EXPECT_THAT(CertificatesIn(""), IsEmpty());
  EXPECT_EQ(KeyIn(first), nullptr);
  EXPECT_TRUE(IsKeyOf(first + second, ReadFile(path + "/1.key").value()));
  EXPECT_FALSE(IsKeyOf(first + second, ReadFile(path + "/2.key").value()));
}

}  // namespace
}  // namespace ringmaster

// Who is told what by HTTP.
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "tests/coordinator/services/access_server.h"
#include "tests/testing/certificate.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using v1::Token;

class HttpAccessTest : public AccessTest {
 protected:
  std::string Page(const std::string& path, const std::string& authorization) const {
    return HttpGet(server_->http_address(), path, authorization);
  }
  static int Code(const std::string& answer) { return std::stoi("0" + answer.substr(9, 3)); }

  static std::string Bearer(const std::string& token) { return "Bearer " + token; }
  static std::string Basic(const std::string& user, const std::string& password) {
    return "Basic " + absl::Base64Escape(user + ":" + password);
  }

  // What the coordinator has written down; it has ended then.
  std::vector<std::string> AuditLines(const std::string& kind) {
    server_.reset();
    const std::string text =
        FileText(absl::StrCat(temporary_.path(), "/data/audit", kind, ".jsonl"));
    return absl::StrSplit(text, '\n', absl::SkipEmpty());
  }
};

TEST_F(HttpAccessTest, ProbesAreForEverybody) {
  for (const char* path : {"/healthz", "/readyz"}) EXPECT_EQ(Code(Page(path, "")), 200) << path;
  EXPECT_EQ(Code(Page("/healthz", "Bearer nonsense")), 200);
}

TEST_F(HttpAccessTest, NoTokenNoPage) {
  for (const char* path : {"/", "/metrics", "/jobs", "/jobs/default/bible", "/workers", "/page.css",
                           "/none", "/healthz/"}) {
    const std::string page = Page(path, "");
    EXPECT_EQ(Code(page), 401) << path;
    EXPECT_THAT(page, HasSubstr("\r\nWWW-Authenticate: Basic realm="));
    EXPECT_THAT(page, Not(HasSubstr("ringmaster_")));
  }
}

TEST_F(HttpAccessTest, TakesATokenAsBearerOrPassword) {
  const std::string viewer = Secret(Token::VIEWER);
  for (const std::string& authorization :
       {Bearer(viewer), "bEARER  " + viewer, Basic("", viewer), Basic("me", viewer)}) {
    EXPECT_THAT(Page("/metrics", authorization), HasSubstr("ringmaster_build_info{"))
        << authorization;
    EXPECT_EQ(Code(Page("/", authorization)), 200) << authorization;
    EXPECT_EQ(Code(Page("/none", authorization)), 404) << authorization;
  }
}

// Who has one need not come by a name of ours.
TEST_F(HttpAccessTest, WithATokenNamesDoNotCount) {
  EXPECT_EQ(Code(HttpGet(server_->http_address(), "/", Bearer(admin_), "ringmaster.example")), 200);
}

TEST_F(HttpAccessTest, RefusesWhatIsNoToken) {
  const std::string viewer = Secret(Token::VIEWER);
  for (const std::string& authorization :
       {Bearer(""), Bearer("x"), Bearer(viewer + "x"), Bearer(viewer.substr(1)), viewer,
        Basic(viewer, ""), Basic("", viewer + " "), "Basic " + viewer, std::string("Basic ===="),
        "Basic " + absl::Base64Escape(viewer), "Digest " + viewer}) {
    EXPECT_EQ(Code(Page("/metrics", authorization)), 401) << authorization;
  }
}

TEST_F(HttpAccessTest, WorkersAndThoseOfAProjectSeeNoMetrics) {
  EXPECT_EQ(Code(Page("/metrics", Bearer(Secret(Token::WORKER)))), 403);
  for (const char* path : {"/", "/jobs/default/bible", "/page.js", "/none"}) {
    EXPECT_EQ(Code(Page(path, Bearer(Secret(Token::WORKER)))), 403) << path;
  }
  EXPECT_EQ(Code(Page("/metrics", Bearer(Secret(Token::VIEWER, "projects/vision")))), 403);
  EXPECT_EQ(Code(Page("/metrics", Bearer(admin_))), 200);
}

TEST_F(HttpAccessTest, RevokedAndExpiredTokensOpenNothing) {
  const v1::CreateTokenResponse revoked = Make(Token::VIEWER);
  const v1::CreateTokenResponse expired = Make(Token::VIEWER, "", /*ttl_seconds=*/60);
  for (const auto& token : {revoked, expired}) {
    EXPECT_EQ(Code(Page("/metrics", Bearer(token.secret()))), 200);
  }
  ASSERT_TRUE(Revoke(revoked.token().name()).ok());
  ahead_ = 61;
  for (const auto& token : {revoked, expired}) {
    EXPECT_EQ(Code(Page("/metrics", Bearer(token.secret()))), 401);
  }
}

TEST_F(HttpAccessTest, RefusalsAreWrittenDown) {
  const v1::CreateTokenResponse bound = Make(Token::VIEWER, "projects/vision");
  Page("/metrics", "");
  Page("/metrics", Bearer(bound.secret()));
  Page("/metrics", Bearer(admin_));
  Page("/healthz", "");
  const auto unknown = AuditLines("-unknown");
  ASSERT_THAT(unknown, SizeIs(1));
  for (const char* part : {"\"method\":\"Http.GetMetrics\"", "\"peer\":\"ipv4:127.0.0.1:",
                           "\"resource\":\"/metrics\"", "\"reason\":\"TOKEN_MISSING\""}) {
    EXPECT_THAT(unknown[0], HasSubstr(part));
  }
  const auto failed = AuditLines("-failed");
  ASSERT_THAT(failed, SizeIs(1));
  EXPECT_THAT(failed[0], HasSubstr("\"caller\":\"" + bound.token().name() + "\""));
  EXPECT_THAT(failed[0], HasSubstr("\"reason\":\"OTHER_PROJECT\""));
}

// Whatever gRPC listens at.
TEST_F(HttpAccessTest, HttpBeyondLoopbackAsksForTokens) {
  server_.reset();
  ServerOptions options = Options();
  options.http_listen = "0.0.0.0:0";
  EXPECT_EQ(Server::Start(options).status().code(), absl::StatusCode::kFailedPrecondition);
  options.tls.certificate = temporary_.path() + "/tls.crt";
  options.tls.key = temporary_.path() + "/tls.key";
  WriteCertificate("localhost", options.tls.certificate, options.tls.key);
  auto server = Server::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  // And says nothing in the clear.
  const std::string port = absl::StrCat(
      "127.0.0.1", (*server)->http_address().substr((*server)->http_address().rfind(':')));
  EXPECT_THAT(HttpGet(port, "/healthz"), Not(HasSubstr("HTTP/1.1")));
}

}  // namespace
}  // namespace ringmaster::coordinator

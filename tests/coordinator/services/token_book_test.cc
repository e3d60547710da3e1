#include "coordinator/services/token_book.h"

#include <memory>
#include <string>

#include "coordinator/store/sqlite_token_store.h"
#include "gtest/gtest.h"
#include "proto/rpc_status.h"
#include "tests/testing/temporary_directory.h"

namespace ringmaster::coordinator {
namespace {

class TokenBookTest : public ::testing::Test {
 protected:
  TokenBookTest() {
    store_ = *SqliteStore::Open({.directory = *DataDirectory::Open(temporary_.path() + "/data")});
    book_ = Open();
  }

  std::unique_ptr<TokenBook> Open() {
    auto book = TokenBook::Open(
        *SqliteTokenStore::Open(*store_), [this] { return now_; }, /*tokens_max=*/3);
    EXPECT_TRUE(book.ok()) << book.status();
    return *std::move(book);
  }
  absl::StatusOr<v1::CreateTokenResponse> Create(absl::Duration ttl) {
    v1::CreateTokenRequest request;
    request.set_display_name("a test");
    request.set_scope(v1::Token::VIEWER);
    request.mutable_ttl()->set_seconds(absl::ToInt64Seconds(ttl));
    now_ += absl::Seconds(1);
    return book_->Create(request);
  }

  const TemporaryDirectory temporary_;
  absl::Time now_ = absl::FromUnixSeconds(1'000'000'000);
  std::unique_ptr<SqliteStore> store_;
  std::unique_ptr<TokenBook> book_;
};

TEST_F(TokenBookTest, FullBookForgetsTheOldestThatIsInForceNoLonger) {
  const auto first = Create(absl::Hours(2));
  const auto second = Create(absl::Hours(1));
  const auto third = Create(absl::Hours(3));
  const absl::Status full = Create(absl::Hours(1)).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(Details(full).reason, "TOO_MANY_TOKENS");
  now_ += absl::Minutes(150);
  EXPECT_TRUE(Create(absl::Hours(1)).ok());  // In the place of the first.
  EXPECT_TRUE(Create(absl::Hours(1)).ok());
  EXPECT_FALSE(Create(absl::Hours(1)).ok());
  for (const bool again : {false, true}) {
    if (again) book_ = Open();
    EXPECT_EQ(Details(book_->Find(first->secret()).status()).reason, "TOKEN_INVALID");
    EXPECT_EQ(Details(book_->Find(second->secret()).status()).reason, "TOKEN_INVALID");
    EXPECT_TRUE(book_->Find(third->secret()).ok());
    EXPECT_EQ(book_->List().tokens_size(), 3);
  }
}

TEST_F(TokenBookTest, TokensAreNotAlike) {
  const auto first = Create(absl::Hours(1));
  const auto second = Create(absl::Hours(1));
  EXPECT_NE(first->secret(), second->secret());
  // One's name with another's secret.
  std::string mixed = first->secret();
  mixed.replace(mixed.rfind('_'), std::string::npos,
                second->secret().substr(second->secret().rfind('_')));
  EXPECT_FALSE(book_->Find(mixed).ok());
  EXPECT_FALSE(book_->Find("").ok());
  EXPECT_FALSE(book_->Find(first->token().name()).ok());
  EXPECT_FALSE(book_->Find(first->secret() + " ").ok());
  EXPECT_EQ(book_->Find(first->secret())->name(), first->token().name());
}

TEST_F(TokenBookTest, EndsWhenItSays) {
  const auto token = Create(absl::Hours(1));
  const absl::Time end = now_ + absl::Hours(1);
  EXPECT_EQ(book_->ExpiryOf(token->token().name()), end);
  now_ = end - absl::Nanoseconds(1);
  EXPECT_TRUE(book_->Find(token->secret()).ok());
  now_ = end;
  EXPECT_EQ(Details(book_->Find(token->secret()).status()).reason, "TOKEN_EXPIRED");
}

TEST_F(TokenBookTest, DamagedRecordIsDataLoss) {
  ASSERT_TRUE((*SqliteTokenStore::Open(*store_))->Put("tokens/a", "x").ok());
  EXPECT_EQ(
      TokenBook::Open(*SqliteTokenStore::Open(*store_), [this] { return now_; }).status().code(),
      absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace ringmaster::coordinator

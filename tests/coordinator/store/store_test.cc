// What every store promises.
#include "coordinator/store/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "coordinator/store/postgres_store.h"
#include "coordinator/store/postgres_token_store.h"
#include "coordinator/store/sqlite_store.h"
#include "coordinator/store/sqlite_token_store.h"
#include "tests/coordinator/store/postgres_server.h"
#include "tests/coordinator/store/store_rows.h"
#include "tests/testing/temporary_directory.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

class StoreTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!is_postgres()) return;
    PostgresServer* const server = PostgresServer::Shared();
    if (server == nullptr) GTEST_SKIP() << "no PostgreSQL server: deploy/local/setup --tests";
    url_ = server->NewDatabase();
  }

  // A new life; the store of the one before is gone.
  std::unique_ptr<Store> MustOpen() {
    if (is_postgres()) {
      PostgresServer::EndSessions(url_);
      auto store = Opened(PostgresStore::Open(url_));
      epoch_ = store->epoch();
      return store;
    }
    std::shared_ptr<DataDirectory> directory = Opened(DataDirectory::Open(temporary_.path()));
    auto store = Opened(SqliteStore::Open({.directory = std::move(directory)}));
    sqlite_ = store.get();
    return store;
  }

  // Of the life that was opened last.
  std::unique_ptr<TokenStore> MustOpenTokens() {
    if (is_postgres()) return Opened(PostgresTokenStore::Open(url_, epoch_));
    return Opened(SqliteTokenStore::Open(*sqlite_));
  }

 private:
  static bool is_postgres() { return std::string(GetParam()) == "PostgreSQL"; }
  template <typename T>
  static std::unique_ptr<T> Opened(absl::StatusOr<std::unique_ptr<T>> opened) {
    EXPECT_TRUE(opened.ok()) << opened.status();
    return *std::move(opened);
  }

  const TemporaryDirectory temporary_;
  SqliteStore* sqlite_ = nullptr;
  std::string url_;
  int64_t epoch_ = 0;
};

TEST_P(StoreTest, KeepsWhatWasCommitted) {
  {
    auto store = MustOpen();
    EXPECT_TRUE(
        store->Commit({Put("a", "1"), Put("b", "2"), Put("c", std::string("\0x", 2))}).ok());
    EXPECT_TRUE(store->Commit({Put("a", "3"), Erase("b")}).ok());
  }
  auto store = MustOpen();
  EXPECT_THAT(RowsOf(*store), ElementsAre(Pair("a", "3"), Pair("c", std::string("\0x", 2))));
  EXPECT_GT(store->SizeBytes(), 0);
}

TEST_P(StoreTest, KeepsTablesApart) {
  const std::map<Table, std::string> values = {{Table::kJobs, "job"},
                                               {Table::kRequests, "request"},
                                               {Table::kCheckpoints, ""},
                                               {Table::kCordons, "cordon"},
                                               {Table::kQueues, "queue"}};
  std::vector<RowChange> rows;
  for (const auto& [table, value] : values) {
    rows.push_back({.table = table, .key = "same", .value = value});
  }
  auto store = MustOpen();
  ASSERT_TRUE(store->Commit(rows).ok());
  const StoredState state = *store->Load();
  ASSERT_EQ(state.rows.size(), values.size());
  for (const Row& row : state.rows) EXPECT_EQ(row.value, values.at(row.table));
}

TEST_P(StoreTest, LastChangeOfARowCounts) {
  auto store = MustOpen();
  ASSERT_TRUE(store->Commit({Put("a", "1"), Put("b", "1"), Put("a", "2"), Erase("b")}).ok());
  EXPECT_THAT(RowsOf(*store), ElementsAre(Pair("a", "2")));
}

TEST_P(StoreTest, KeepsTokensOutOfTheCoresSight) {
  {
    auto store = MustOpen();
    auto tokens = MustOpenTokens();
    EXPECT_TRUE(tokens->Put("a", std::string("\0x", 2)).ok());
    EXPECT_TRUE(tokens->Put("b", "1").ok());
    EXPECT_TRUE(tokens->PutFromReserve("b", "2").ok());
    EXPECT_TRUE(tokens->Put("c", "3").ok());
    EXPECT_TRUE(tokens->Erase("c").ok());
    EXPECT_TRUE(tokens->Erase("absent").ok());
    EXPECT_TRUE(store->Commit({Put("job", "1")}).ok());
  }
  auto store = MustOpen();
  EXPECT_THAT(*MustOpenTokens()->Load(),
              ElementsAre(Pair("a", std::string("\0x", 2)), Pair("b", "2")));
  EXPECT_THAT(RowsOf(*store), ElementsAre(Pair("job", "1")));
}

INSTANTIATE_TEST_SUITE_P(, StoreTest, testing::Values("SQLite", "PostgreSQL"),
                         [](const auto& tested) { return std::string(tested.param); });

}  // namespace
}  // namespace ringmaster::coordinator

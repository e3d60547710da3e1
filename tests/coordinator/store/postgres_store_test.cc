#include "coordinator/store/postgres_store.h"

#include <atomic>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/store/postgres_token_store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/store/postgres_server.h"
#include "tests/coordinator/store/store_rows.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

class PostgresStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    PostgresServer* const server = PostgresServer::Shared();
    if (server == nullptr) GTEST_SKIP() << "no PostgreSQL server: deploy/local/setup --tests";
    url_ = server->NewDatabase();
  }
  std::unique_ptr<PostgresStore> MustOpen() {
    auto store = PostgresStore::Open(url_);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? std::move(*store) : nullptr;
  }
  void Sql(const std::string& sql) {
    auto connection = ConnectPostgres(url_);
    ASSERT_TRUE(connection.ok()) << connection.status();
    const absl::Status status = ExecutePostgres(connection->get(), sql);
    EXPECT_TRUE(status.ok()) << status;
  }

  std::string url_;
};

TEST_F(PostgresStoreTest, EpochRisesWithEachStart) {
  EXPECT_EQ(MustOpen()->epoch(), 1);
  PostgresServer::EndSessions(url_);
  EXPECT_EQ(MustOpen()->epoch(), 2);
}

TEST_F(PostgresStoreTest, SecondCoordinatorIsRefused) {
  auto first = MustOpen();
  const auto second = PostgresStore::Open(url_);
  ASSERT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition) << second.status();
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another coordinator"));
  // It was not the refused one's turn.
  EXPECT_TRUE(first->Commit({Put("a", "1")}).ok());
}

TEST_F(PostgresStoreTest, CommitsOfAnEarlierEpochDoNothing) {
  auto store = MustOpen();
  ASSERT_TRUE(store->Commit({Put("a", "1"), Put("b", "1")}).ok());
  Sql("UPDATE coordinator SET value = value + 1");
  const absl::Status status = store->Commit({Put("a", "2"), Erase("b")});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_FALSE(CanGoOn(status));
  EXPECT_THAT(RowsOf(*store), ElementsAre(Pair("a", "1"), Pair("b", "1")));
}

TEST_F(PostgresStoreTest, TokensOfAnEarlierEpochAreNotWritten) {
  auto store = MustOpen();
  auto tokens = *PostgresTokenStore::Open(url_, store->epoch());
  ASSERT_TRUE(tokens->Put("a", "1").ok());
  Sql("UPDATE coordinator SET value = value + 1");
  EXPECT_TRUE(absl::IsFailedPrecondition(tokens->Put("a", "2")));
  EXPECT_TRUE(absl::IsFailedPrecondition(tokens->Put("b", "1")));
  EXPECT_TRUE(absl::IsFailedPrecondition(tokens->Erase("a")));
  EXPECT_THAT(*tokens->Load(), ElementsAre(Pair("a", "1")));
}

TEST_F(PostgresStoreTest, TokensOutliveALostConnection) {
  auto store = MustOpen();
  auto tokens = *PostgresTokenStore::Open(url_, store->epoch());
  PostgresServer::EndSessions(url_);
  EXPECT_EQ(tokens->Put("a", "1").code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(tokens->Put("a", "2").ok());
  EXPECT_THAT(*tokens->Load(), ElementsAre(Pair("a", "2")));
}

// A commit that began before the next epoch did, and waits for it, is not committed after it.
TEST_F(PostgresStoreTest, CommitThatWaitsForTheNextEpochDoesNothing) {
  auto store = MustOpen();
  auto next = *ConnectPostgres(url_);
  ASSERT_TRUE(ExecutePostgres(next.get(), "BEGIN; UPDATE coordinator SET value = value + 1").ok());
  absl::Status status;
  std::atomic<bool> ended = false;
  std::thread thread([&] {
    status = store->Commit({Put("a", "1")});
    ended = true;
  });
  const auto waits = [&] {
    const auto result = *RunPostgres(next.get(), "look for who waits",
                                     "SELECT count(*) FROM pg_locks WHERE NOT granted");
    return PostgresIntegerOf(result.get(), 0, 0) > 0;
  };
  while (!ended && !waits()) {
  }
  EXPECT_TRUE(ExecutePostgres(next.get(), "COMMIT").ok());
  thread.join();
  // On a slow machine the lock may have come too late.
  EXPECT_TRUE(absl::IsFailedPrecondition(status) || absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(RowsOf(*store).empty());
  EXPECT_TRUE(absl::IsFailedPrecondition(store->Commit({Put("a", "1")})));
}

TEST_F(PostgresStoreTest, LostConnectionEndsTheProcess) {
  auto store = MustOpen();
  PostgresServer::EndSessions(url_);
  const absl::Status status = store->Commit({Put("a", "1")});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_FALSE(CanGoOn(status));
}

TEST_F(PostgresStoreTest, AnotherProgramsLockIsNoEnd) {
  auto store = MustOpen();
  auto other = *ConnectPostgres(url_);
  ASSERT_TRUE(ExecutePostgres(other.get(), "BEGIN; LOCK TABLE records IN EXCLUSIVE MODE").ok());
  const absl::Status status = store->Commit({Put("a", "1")});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(ExecutePostgres(other.get(), "ROLLBACK").ok());
  EXPECT_TRUE(RowsOf(*store).empty());
  EXPECT_TRUE(store->Commit({Put("a", "1")}).ok());
}

// A trigger stands for a server that finds its disk full, or itself read-only.
TEST_F(PostgresStoreTest, FailedCommitLeavesNothing) {
  const std::vector<std::pair<std::string, absl::StatusCode>> cases = {
      {"53100", absl::StatusCode::kResourceExhausted},
      {"25006", absl::StatusCode::kUnavailable},
      {"40001", absl::StatusCode::kUnavailable},
      {"XX001", absl::StatusCode::kDataLoss},
      {"22000", absl::StatusCode::kInternal}};
  auto store = MustOpen();
  for (const auto& [state, code] : cases) {
    Sql("CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'told to fail' USING ERRCODE = '" +
        state +
        "'; END $$;"
        "CREATE OR REPLACE TRIGGER fails BEFORE INSERT ON records FOR EACH ROW"
        " WHEN (NEW.key = 'z') EXECUTE FUNCTION fail()");
    EXPECT_EQ(store->Commit({Put("a", "1"), Put("z", "1")}).code(), code) << state;
    EXPECT_TRUE(RowsOf(*store).empty()) << state;
  }
  EXPECT_TRUE(store->RestoreReserve());
  EXPECT_TRUE(store->Commit({Put("a", "1")}).ok());
}

TEST_F(PostgresStoreTest, NewerDatabaseIsRefused) {
  MustOpen();
  PostgresServer::EndSessions(url_);
  Sql("UPDATE schema_version SET version = 1000");
  EXPECT_EQ(PostgresStore::Open(url_).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(PostgresUrlTest, SecretsAreRefused) {
  for (const char* url : {"postgresql://me:hush@host/db", "host=h password=hush", "no url"}) {
    const absl::Status status = ConnectPostgres(url).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(status.ToString().find("hush"), std::string::npos);
  }
}

}  // namespace
}  // namespace ringmaster::coordinator

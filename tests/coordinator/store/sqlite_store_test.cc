#include "coordinator/store/sqlite_store.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "coordinator/store/migrations.h"
#include "coordinator/store/sqlite_token_store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/store/faulty_vfs.h"
#include "tests/coordinator/store/store_rows.h"
#include "tests/testing/temporary_directory.h"

namespace ringmaster::coordinator {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

class SqliteStoreTest : public ::testing::Test {
 protected:
  SqliteStoreTest() : directory_(temporary_.path() + "/data") {}

  absl::StatusOr<std::unique_ptr<SqliteStore>> Open() {
    auto directory = DataDirectory::Open(directory_);
    if (!directory.ok()) return directory.status();
    return SqliteStore::Open({.directory = *std::move(directory),
                              .reserve_bytes = 1 << 20,
                              .busy_timeout = absl::Milliseconds(5),
                              .vfs = FaultyVfs::kName});
  }
  std::unique_ptr<SqliteStore> MustOpen() {
    auto store = Open();
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? std::move(*store) : nullptr;
  }
  // Runs SQL on the closed database, as another program would.
  void Sql(const std::string& sql) {
    sqlite3* database = nullptr;
    ASSERT_EQ(sqlite3_open((directory_ + "/coordinator.db").c_str(), &database), SQLITE_OK);
    char* error = nullptr;
    EXPECT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, &error), SQLITE_OK) << error;
    sqlite3_close(database);
  }

  const TemporaryDirectory temporary_;
  const std::string directory_;
  FaultyVfs vfs_;
};

TEST_F(SqliteStoreTest, EpochRisesWithEachStart) {
  EXPECT_EQ(MustOpen()->epoch(), 1);
  EXPECT_EQ(MustOpen()->epoch(), 2);
  EXPECT_EQ(MustOpen()->epoch(), 3);
}

TEST_F(SqliteStoreTest, SecondCoordinatorIsRefused) {
  auto first = MustOpen();
  const auto second = Open();
  ASSERT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another coordinator"));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(std::to_string(getpid())));
  first.reset();
  EXPECT_TRUE(Open().ok());
}

TEST_F(SqliteStoreTest, FlushesBeforeItReturns) {
  auto store = MustOpen();
  int syncs = 0;
  vfs_.on_sync = [&](const std::string&) {
    ++syncs;
    return SQLITE_OK;
  };
  ASSERT_TRUE(store->Commit({Put("a", "1"), Put("b", "2")}).ok());
  EXPECT_EQ(syncs, 1);
}

TEST_F(SqliteStoreTest, FullDiskRollsBackAndGoesOn) {
  auto store = MustOpen();
  ASSERT_TRUE(store->Commit({Put("a", "1")}).ok());
  // The disk fills up in the middle of a transaction.
  int writes = 0;
  vfs_.on_write = [&](const std::string&) { return ++writes > 3 ? SQLITE_FULL : SQLITE_OK; };
  const absl::Status status = store->Commit({Put("a", "2"), Put("b", std::string(100000, 'x'))});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_TRUE(CanGoOn(status));
  EXPECT_THAT(RowsOf(*store), ElementsAre(Pair("a", "1")));
  vfs_.on_write = nullptr;
  EXPECT_TRUE(store->Commit({Put("c", "3")}).ok());
  EXPECT_THAT(RowsOf(*store), ElementsAre(Pair("a", "1"), Pair("c", "3")));
}

TEST_F(SqliteStoreTest, ReserveLetsSmallRowsBeCommittedOnAFullDisk) {
  auto store = MustOpen();
  // Full until the reserve is given back.
  vfs_.on_write = [&](const std::string&) {
    return access((directory_ + "/reserve").c_str(), F_OK) == 0 ? SQLITE_FULL : SQLITE_OK;
  };
  EXPECT_EQ(store->Commit({Put("a", "1")}).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store->ReleaseReserve());
  EXPECT_FALSE(store->ReleaseReserve());
  EXPECT_TRUE(store->Commit({Put("a", "1")}).ok());
  EXPECT_TRUE(store->RestoreReserve());
  EXPECT_EQ(store->Commit({Put("b", "1")}).code(), absl::StatusCode::kResourceExhausted);
}

// A limit on the size of files stands for a disk with this much room.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_ = {};
  sighandler_t handler_ = nullptr;
};

TEST_F(SqliteStoreTest, StartsOnAFullDiskWithTheReserve) {
  { ASSERT_TRUE(MustOpen()->Commit({Put("a", "1")}).ok()); }
  vfs_.on_write = [this](const std::string&) {
    return access((directory_ + "/reserve").c_str(), F_OK) == 0 ? SQLITE_FULL : SQLITE_OK;
  };
  auto store = MustOpen();
  ASSERT_NE(store, nullptr);
  EXPECT_EQ(store->epoch(), 2);
  EXPECT_FALSE(store->HasReserve());
  EXPECT_THAT(RowsOf(*store), ElementsAre(Pair("a", "1")));
  // Without a reserve there is nothing to be done.
  store.reset();
  vfs_.on_write = [](const std::string&) { return SQLITE_FULL; };
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(SqliteStoreTest, ReserveIsNotRestoredIntoItsOwnRoom) {
  auto store = MustOpen();
  const auto reserve_bytes = [&]() -> int64_t {
    struct stat status = {};
    return stat((directory_ + "/reserve").c_str(), &status) == 0 ? status.st_size : -1;
  };
  {
    const FileSizeLimit limit(3 << 19);
    ASSERT_TRUE(store->ReleaseReserve());
    // One and a half times the reserve is free: its own room and too little beside it.
    EXPECT_FALSE(store->RestoreReserve());
    EXPECT_EQ(reserve_bytes(), -1);
  }
  EXPECT_TRUE(store->RestoreReserve());
  EXPECT_EQ(reserve_bytes(), 1 << 20);
  const FileSizeLimit limit(3 << 19);
  EXPECT_FALSE(store->RestoreReserve());
  EXPECT_EQ(reserve_bytes(), 1 << 20);  // What is there stays.
}

TEST_F(SqliteStoreTest, FailedFlushEndsTheProcess) {
  auto store = MustOpen();
  vfs_.on_sync = [](const std::string&) { return SQLITE_IOERR_FSYNC; };
  const absl::Status status = store->Commit({Put("a", "1")});
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << status;
  EXPECT_FALSE(CanGoOn(status));
}

TEST_F(SqliteStoreTest, FailedWriteEndsTheProcess) {
  auto store = MustOpen();
  vfs_.on_write = [](const std::string&) { return SQLITE_IOERR_WRITE; };
  EXPECT_FALSE(CanGoOn(store->Commit({Put("a", "1")})));
}

TEST_F(SqliteStoreTest, AnotherProgramsLockIsNoEnd) {
  auto store = MustOpen();
  sqlite3* other = nullptr;
  ASSERT_EQ(sqlite3_open((directory_ + "/coordinator.db").c_str(), &other), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(other, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  const absl::Status status = store->Commit({Put("a", "1")});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_TRUE(CanGoOn(status));
  sqlite3_close(other);
  EXPECT_TRUE(store->Commit({Put("a", "1")}).ok());
}

TEST_F(SqliteStoreTest, DamagedDatabaseIsDataLoss) {
  MustOpen();
  std::ofstream(directory_ + "/coordinator.db", std::ios::binary) << std::string(8192, 'x');
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(SqliteStoreTest, NewerDatabaseIsRefused) {
  MustOpen();
  Sql("PRAGMA user_version = 1000");
  const auto store = Open();
  ASSERT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("1000"));
}

TEST_F(SqliteStoreTest, OtherProgramsDatabaseIsRefused) {
  ASSERT_EQ(mkdir(directory_.c_str(), 0700), 0);
  Sql("CREATE TABLE bookmarks (url TEXT)");
  const auto bytes = [this] {
    std::ifstream file(directory_ + "/coordinator.db", std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string before = bytes();
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(bytes(), before);
}

TEST_F(SqliteStoreTest, RecordsOfAnUnknownKindAreNotIgnored) {
  MustOpen();
  Sql("INSERT INTO records VALUES ('quotas', 'a', x'00')");
  EXPECT_EQ(MustOpen()->Load().status().code(), absl::StatusCode::kDataLoss);
}

class SqliteTokenStoreTest : public SqliteStoreTest {};

TEST_F(SqliteTokenStoreTest, FlushesBeforeItReturns) {
  auto store = MustOpen();
  auto tokens = *SqliteTokenStore::Open(*store);
  int syncs = 0;
  vfs_.on_sync = [&](const std::string&) {
    ++syncs;
    return SQLITE_OK;
  };
  EXPECT_TRUE(tokens->Put("a", "1").ok());
  EXPECT_GE(syncs, 1);
}

// A flush of either would be a busy database for the other, which the event loop takes for a full
// disk; here nobody waits for one.
TEST_F(SqliteTokenStoreTest, DoesNotDisturbTheCoresCommits) {
  auto store = *SqliteStore::Open({.directory = *DataDirectory::Open(directory_),
                                   .reserve_bytes = 1 << 20,
                                   .busy_timeout = absl::ZeroDuration()});
  auto tokens = *SqliteTokenStore::Open(*store);
  std::atomic<bool> committed = false;
  std::thread thread([&] {
    for (int i = 0; i < 200; ++i) {
      const absl::Status status = store->Commit({Put("a", std::to_string(i))});
      EXPECT_TRUE(status.ok()) << status;
    }
    committed = true;
  });
  for (int i = 0; !committed; ++i) {
    const std::string key = std::to_string(i % 10);
    const absl::Status status = i % 3 == 0 ? tokens->Erase(key) : tokens->Put(key, "x");
    EXPECT_TRUE(status.ok()) << status;
  }
  thread.join();
}

TEST_F(SqliteTokenStoreTest, FullDiskLeavesTheRowAsItWas) {
  auto store = MustOpen();
  auto tokens = *SqliteTokenStore::Open(*store);
  ASSERT_TRUE(tokens->Put("a", "1").ok());
  vfs_.on_write = [](const std::string&) { return SQLITE_FULL; };
  EXPECT_EQ(tokens->Put("a", "2").code(), absl::StatusCode::kResourceExhausted);
  vfs_.on_write = nullptr;
  EXPECT_THAT(*tokens->Load(), ElementsAre(Pair("a", "1")));
}

TEST_F(SqliteTokenStoreTest, ReserveIsForWhatMustNotFail) {
  auto store = MustOpen();
  auto tokens = *SqliteTokenStore::Open(*store);
  vfs_.on_write = [this](const std::string&) {
    return access((directory_ + "/reserve").c_str(), F_OK) == 0 ? SQLITE_FULL : SQLITE_OK;
  };
  EXPECT_EQ(tokens->Put("a", "1").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store->HasReserve());
  EXPECT_TRUE(tokens->PutFromReserve("a", "1").ok());
  EXPECT_FALSE(store->HasReserve());
  // Used up.
  vfs_.on_write = [](const std::string&) { return SQLITE_FULL; };
  EXPECT_EQ(tokens->PutFromReserve("a", "2").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(*tokens->Load(), ElementsAre(Pair("a", "1")));
}

// A database as the first version left it.
TEST_F(SqliteTokenStoreTest, FirstVersionsDatabaseGetsTheTable) {
  ASSERT_EQ(mkdir(directory_.c_str(), 0700), 0);
  sqlite3* raw = nullptr;
  ASSERT_EQ(sqlite3_open((directory_ + "/coordinator.db").c_str(), &raw), SQLITE_OK);
  ASSERT_TRUE(Migrate(raw, Migrations().first(1)).ok());
  sqlite3_close(raw);
  Sql("INSERT INTO records VALUES ('jobs', 'a', x'31'); UPDATE coordinator SET value = 7");
  auto store = MustOpen();
  ASSERT_NE(store, nullptr);
  EXPECT_EQ(store->epoch(), 8);
  EXPECT_THAT(RowsOf(*store), ElementsAre(Pair("a", "1")));
  auto tokens = *SqliteTokenStore::Open(*store);
  EXPECT_TRUE(tokens->Load()->empty());
  EXPECT_TRUE(tokens->Put("b", "2").ok());
}

// The path from every version that was ever released to the newest one is the same code over a
// longer table; here with a table of its own, so that each way it may go is tested.
class MigrationTest : public ::testing::Test {
 protected:
  MigrationTest() {
    sqlite3* raw = nullptr;
    EXPECT_EQ(sqlite3_open(":memory:", &raw), SQLITE_OK);
    sqlite3_extended_result_codes(raw, 1);
    database_.reset(raw);
  }
  int64_t Version() { return *QueryInteger(database_.get(), "PRAGMA user_version"); }

  Database database_;
};

constexpr Migration kSteps[] = {{1, "CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (7);"},
                                {2, "ALTER TABLE a ADD COLUMN y INTEGER NOT NULL DEFAULT 5;"},
                                {3, "UPDATE a SET y = x + y;"}};

TEST_F(MigrationTest, OldDatabaseTakesOnlyTheStepsThatItLacks) {
  const absl::Span<const Migration> steps = kSteps;
  ASSERT_TRUE(Migrate(database_.get(), steps.first(1)).ok());
  EXPECT_EQ(Version(), 1);
  ASSERT_TRUE(Migrate(database_.get(), steps).ok());
  EXPECT_EQ(Version(), 3);
  EXPECT_EQ(*QueryInteger(database_.get(), "SELECT y FROM a"), 12);
  ASSERT_TRUE(Migrate(database_.get(), steps).ok());
  EXPECT_EQ(*QueryInteger(database_.get(), "SELECT y FROM a"), 12);
  EXPECT_EQ(Migrate(database_.get(), steps.first(2)).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(MigrationTest, FailedStepLeavesTheVersionBefore) {
  constexpr Migration kBroken[] = {kSteps[0],
                                   {2, "DELETE FROM a; INSERT INTO missing VALUES (1);"}};
  EXPECT_FALSE(Migrate(database_.get(), kBroken).ok());
  EXPECT_EQ(Version(), 1);
  EXPECT_EQ(*QueryInteger(database_.get(), "SELECT x FROM a"), 7);
}

TEST(MigrationsTest, VersionsAscendByOne) {
  int version = 0;
  for (const Migration& step : Migrations()) EXPECT_EQ(step.version, ++version);
}

}  // namespace
}  // namespace ringmaster::coordinator

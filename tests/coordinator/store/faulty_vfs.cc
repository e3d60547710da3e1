#include "tests/coordinator/store/faulty_vfs.h"

#include <cstdlib>

#include "sqlite3.h"

namespace ringmaster::coordinator {
namespace {

FaultyVfs* active = nullptr;
sqlite3_vfs vfs = {};

// SQLite allocates szOsFile bytes: this, and behind it the real file.
struct File {
  sqlite3_file base;
  std::string* path;
  sqlite3_file* real() { return reinterpret_cast<sqlite3_file*>(this + 1); }
};

File* From(sqlite3_file* file) { return reinterpret_cast<File*>(file); }
sqlite3_file* Real(sqlite3_file* file) { return From(file)->real(); }
const sqlite3_io_methods* Methods(sqlite3_file* file) { return Real(file)->pMethods; }

int Ask(const FaultyVfs::Hook& hook, sqlite3_file* file) {
  return hook ? hook(*From(file)->path) : SQLITE_OK;
}

int Close(sqlite3_file* file) {
  const int code = Methods(file)->xClose(Real(file));
  delete From(file)->path;
  return code;
}
int Read(sqlite3_file* file, void* bytes, int count, sqlite3_int64 offset) {
  return Methods(file)->xRead(Real(file), bytes, count, offset);
}
int Write(sqlite3_file* file, const void* bytes, int count, sqlite3_int64 offset) {
  const int code = Ask(active->on_write, file);
  return code != SQLITE_OK ? code : Methods(file)->xWrite(Real(file), bytes, count, offset);
}
int Truncate(sqlite3_file* file, sqlite3_int64 size) {
  return Methods(file)->xTruncate(Real(file), size);
}
int Sync(sqlite3_file* file, int flags) {
  const int code = Ask(active->on_sync, file);
  return code != SQLITE_OK ? code : Methods(file)->xSync(Real(file), flags);
}
int FileSize(sqlite3_file* file, sqlite3_int64* size) {
  return Methods(file)->xFileSize(Real(file), size);
}
int Lock(sqlite3_file* file, int lock) { return Methods(file)->xLock(Real(file), lock); }
int Unlock(sqlite3_file* file, int lock) { return Methods(file)->xUnlock(Real(file), lock); }
int CheckReservedLock(sqlite3_file* file, int* result) {
  return Methods(file)->xCheckReservedLock(Real(file), result);
}
int FileControl(sqlite3_file* file, int operation, void* argument) {
  return Methods(file)->xFileControl(Real(file), operation, argument);
}
int SectorSize(sqlite3_file* file) { return Methods(file)->xSectorSize(Real(file)); }
int DeviceCharacteristics(sqlite3_file* file) {
  return Methods(file)->xDeviceCharacteristics(Real(file));
}
int ShmMap(sqlite3_file* file, int page, int size, int extend, void volatile** memory) {
  return Methods(file)->xShmMap(Real(file), page, size, extend, memory);
}
int ShmLock(sqlite3_file* file, int offset, int count, int flags) {
  return Methods(file)->xShmLock(Real(file), offset, count, flags);
}
void ShmBarrier(sqlite3_file* file) { Methods(file)->xShmBarrier(Real(file)); }
int ShmUnmap(sqlite3_file* file, int remove) {
  return Methods(file)->xShmUnmap(Real(file), remove);
}

// Version 2: with shared memory for WAL, without memory-mapped reads.
constexpr sqlite3_io_methods kMethods = {2,
                                         Close,
                                         Read,
                                         Write,
                                         Truncate,
                                         Sync,
                                         FileSize,
                                         Lock,
                                         Unlock,
                                         CheckReservedLock,
                                         FileControl,
                                         SectorSize,
                                         DeviceCharacteristics,
                                         ShmMap,
                                         ShmLock,
                                         ShmBarrier,
                                         ShmUnmap,
                                         nullptr,
                                         nullptr};

int Open(sqlite3_vfs* self, const char* name, sqlite3_file* file, int flags, int* out_flags) {
  auto* real_vfs = static_cast<sqlite3_vfs*>(self->pAppData);
  File* const opened = From(file);
  opened->base.pMethods = nullptr;
  const int code = real_vfs->xOpen(real_vfs, name, opened->real(), flags, out_flags);
  if (code != SQLITE_OK) return code;
  opened->path = new std::string(name == nullptr ? "" : name);
  opened->base.pMethods = &kMethods;
  return SQLITE_OK;
}

}  // namespace

FaultyVfs::FaultyVfs() {
  if (active != nullptr) std::abort();
  active = this;
  sqlite3_vfs* const real = sqlite3_vfs_find(nullptr);
  vfs = *real;
  vfs.pNext = nullptr;
  vfs.zName = kName;
  vfs.pAppData = real;
  vfs.szOsFile = static_cast<int>(sizeof(File)) + real->szOsFile;
  vfs.xOpen = Open;
  sqlite3_vfs_register(&vfs, /*makeDflt=*/0);
}

FaultyVfs::~FaultyVfs() {
  sqlite3_vfs_unregister(&vfs);
  active = nullptr;
}

}  // namespace ringmaster::coordinator

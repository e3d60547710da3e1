// For the tsan preset only: tells ThreadSanitizer of Abseil's locks and gRPC's completions. The
// distribution's libraries are not instrumented, so all that they order would look like races, in
// our code and, as gRPC's locks are Abseil's, in whatever gRPC hands from thread to thread. These
// definitions stand before the shared libraries' own, for gRPC too; they say what instrumented
// libraries would say and call them.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/base/config.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "grpc/grpc.h"

namespace {

#define STRING(text) #text
#define STRING_OF(macro) STRING(macro)

// The library's own function.
void* Find(const std::string& symbol) {
  void* const function = dlsym(RTLD_NEXT, symbol.c_str());
  if (function == nullptr) {
    std::fprintf(stderr, "tsan_order.cc: no library has %s\n", symbol.c_str());
    std::abort();
  }
  return function;
}

// Its mangled name around Abseil's inline namespace.
void* Find(const char* before, const char* after) {
  const std::string space = STRING_OF(ABSL_OPTION_INLINE_NAMESPACE_NAME);
  return Find(before + std::to_string(space.size()) + space + after);
}

template <typename Result, typename... Args>
Result Call(void* function, Args... args) {
  return reinterpret_cast<Result (*)(Args...)>(function)(args...);
}

#define LIBRARY(result, before, after, ...)            \
  [&] {                                                \
    static void* const function = Find(before, after); \
    return Call<result>(function, __VA_ARGS__);        \
  }()

// The lock that the library works for on this thread.
thread_local void* current_lock = nullptr;

class Section {
 public:
  explicit Section(void* lock) : outer_(current_lock) { current_lock = lock; }
  ~Section() { current_lock = outer_; }

 private:
  void* const outer_;
};

// While the library takes `lock`. Only the order is told, not that it comes from locks: gRPC's own
// order of locks is not ours to judge.
class Taking {
 public:
  explicit Taking(void* lock) : lock_(lock), section_(lock) {}
  ~Taking() { __tsan_acquire(lock_); }

 private:
  void* const lock_;
  const Section section_;
};

// While the library gives `lock` up and takes it again.
class Waiting {
 public:
  explicit Waiting(void* lock) : taking_((__tsan_release(lock), lock)) {}

 private:
  const Taking taking_;
};

}  // namespace

namespace absl {
ABSL_NAMESPACE_BEGIN

// Evaluated by whichever thread holds the lock, on its way into or out of the library.
bool Condition::Eval() const {
  void* const lock = current_lock;
  if (lock != nullptr) __tsan_acquire(lock);
  const bool result = LIBRARY(bool, "_ZNK4absl", "9Condition4EvalEv", this);
  if (lock != nullptr) __tsan_release(lock);
  return result;
}

void Mutex::Lock() {
  const Taking taking(this);
  LIBRARY(void, "_ZN4absl", "5Mutex4LockEv", this);
}

bool Mutex::TryLock() {
  const bool locked = LIBRARY(bool, "_ZN4absl", "5Mutex7TryLockEv", this);
  if (locked) __tsan_acquire(this);
  return locked;
}

void Mutex::Unlock() {
  __tsan_release(this);
  const Section section(this);
  LIBRARY(void, "_ZN4absl", "5Mutex6UnlockEv", this);
}

void Mutex::LockWhen(const Condition& condition) {
  const Taking taking(this);
  LIBRARY(void, "_ZN4absl", "5Mutex8LockWhenERKNS0_9ConditionE", this, &condition);
}

bool Mutex::LockWhenWithDeadline(const Condition& condition, Time deadline) {
  const Taking taking(this);
  return LIBRARY(bool, "_ZN4absl", "5Mutex20LockWhenWithDeadlineERKNS0_9ConditionENS0_4TimeE", this,
                 &condition, deadline);
}

bool Mutex::LockWhenWithTimeout(const Condition& condition, Duration timeout) {
  const Taking taking(this);
  return LIBRARY(bool, "_ZN4absl", "5Mutex19LockWhenWithTimeoutERKNS0_9ConditionENS0_8DurationE",
                 this, &condition, timeout);
}

void Mutex::Await(const Condition& condition) {
  const Waiting waiting(this);
  LIBRARY(void, "_ZN4absl", "5Mutex5AwaitERKNS0_9ConditionE", this, &condition);
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  const Waiting waiting(this);
  return LIBRARY(bool, "_ZN4absl", "5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE", this,
                 &condition, deadline);
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  const Waiting waiting(this);
  return LIBRARY(bool, "_ZN4absl", "5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE", this,
                 &condition, timeout);
}

void CondVar::Wait(Mutex* mutex) {
  const Waiting waiting(mutex);
  LIBRARY(void, "_ZN4absl", "7CondVar4WaitEPNS0_5MutexE", this, mutex);
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  const Waiting waiting(mutex);
  return LIBRARY(bool, "_ZN4absl", "7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE", this, mutex,
                 deadline);
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  const Waiting waiting(mutex);
  return LIBRARY(bool, "_ZN4absl", "7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE", this,
                 mutex, timeout);
}

// A notification that has come is seen without the lock.
void Notification::Notify() {
  __tsan_release(this);
  LIBRARY(void, "_ZN4absl", "12Notification6NotifyEv", this);
}

void Notification::WaitForNotification() const {
  LIBRARY(void, "_ZNK4absl", "12Notification19WaitForNotificationEv", this);
  __tsan_acquire(const_cast<Notification*>(this));
}

bool Notification::WaitForNotificationWithTimeout(Duration timeout) const {
  const bool notified =
      LIBRARY(bool, "_ZNK4absl", "12Notification30WaitForNotificationWithTimeoutENS0_8DurationE",
              this, timeout);
  if (notified) __tsan_acquire(const_cast<Notification*>(this));
  return notified;
}

ABSL_NAMESPACE_END
}  // namespace absl

// What a thread did before it started an operation of a call happened before the operation's
// completion, which travels through queues without locks. A completion gives its reference to the
// call back before it calls us.
grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  static void* const function = Find("grpc_call_start_batch");
  __tsan_release(call);
  return Call<grpc_call_error>(function, call, ops, count, tag, reserved);
}

void grpc_call_unref(grpc_call* call) {
  static void* const function = Find("grpc_call_unref");
  __tsan_acquire(call);
  Call<void>(function, call);
}

#include "worker/comm/ucx_worker.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <ucs/debug/debug.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <utility>

#include "base/status_macros.h"
#include "worker/comm/ucx_address.h"
#include "worker/comm/ucx_status.h"

namespace ringmaster::worker {

namespace {

// Loading libucs installs handlers for SIGSEGV, SIGHUP and others, before main could set
// UCX_HANDLE_ERRORS=none. They are undone before main too, so that handlers that the program
// installs itself stay.
[[maybe_unused]] const bool signals_are_ours = [] {
  for (const int signal : {SIGHUP, SIGILL, SIGBUS, SIGFPE, SIGSEGV}) {
    ucs_debug_disable_signal(signal);
  }
  return true;
}();

constexpr int kClosingPollMilliseconds = 2;

}  // namespace

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create(uint64_t client_id,
                                                             const std::string& host) {
  auto result = std::unique_ptr<UcxWorker>(new UcxWorker());
  ucp_config_t* config = nullptr;
  RETURN_IF_ERROR(UcxStatus(ucp_config_read(nullptr, nullptr, &config), "reading UCX settings"));
  if (std::getenv("UCX_TLS") == nullptr) {
    ucp_config_modify(config, "TLS", "tcp");
    const std::string interface = InterfaceOf(host);
    if (std::getenv("UCX_NET_DEVICES") == nullptr && !interface.empty()) {
      ucp_config_modify(config, "NET_DEVICES", interface.c_str());
    }
  }
  const ucp_params_t context_params = {
      .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
      .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP,
      .mt_workers_shared = 0,
  };
  const ucs_status_t opened = ucp_init(&context_params, config, &result->context_);
  ucp_config_release(config);
  RETURN_IF_ERROR(UcxStatus(opened, "opening UCX"));
  const ucp_worker_params_t worker_params = {
      .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE | UCP_WORKER_PARAM_FIELD_CLIENT_ID,
      // Serialized, not single: it is created and destroyed by other threads than the one that
      // drives it.
      .thread_mode = UCS_THREAD_MODE_SERIALIZED,
      .client_id = client_id,
  };
  RETURN_IF_ERROR(UcxStatus(ucp_worker_create(result->context_, &worker_params, &result->worker_),
                            "creating a UCX worker"));
  RETURN_IF_ERROR(UcxStatus(ucp_worker_get_efd(result->worker_, &result->worker_fd_),
                            "asking UCX for its event descriptor"));
  result->wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (result->wake_fd_ < 0) {
    return absl::ResourceExhaustedError("creating an event descriptor failed");
  }
  return result;
}

UcxWorker::~UcxWorker() {
  Shut();
  if (wake_fd_ >= 0) {
    close(wake_fd_);
  }
}

void UcxWorker::Shut() {
  if (worker_ != nullptr) {
    ucp_worker_destroy(std::exchange(worker_, nullptr));
  }
  if (context_ != nullptr) {
    ucp_cleanup(std::exchange(context_, nullptr));
  }
}

void UcxWorker::Post(std::function<void()> task) {
  const std::lock_guard lock(mutex_);
  tasks_.push_back(std::move(task));
  if (tasks_.size() == 1) {
    const uint64_t one = 1;
    // Cannot fail in a way that matters: a full counter wakes as well.
    [[maybe_unused]] const ssize_t written = write(wake_fd_, &one, sizeof(one));
  }
}

bool UcxWorker::RunTasks() {
  std::vector<std::function<void()>> tasks;
  {
    const std::lock_guard lock(mutex_);
    tasks.swap(tasks_);
  }
  for (const auto& task : tasks) {
    task();
  }
  return !tasks.empty();
}

void UcxWorker::Run(const std::function<bool()>& finished, const bool& closing) {
  while (!finished()) {
    bool busy = RunTasks();
    busy = ucp_worker_progress(worker_) != 0 || busy;
    if (!busy) {
      Sleep(closing);
    }
  }
}

void UcxWorker::Sleep(bool briefly) {
  if (ucp_worker_arm(worker_) == UCS_ERR_BUSY) {
    return;  // something arrived meanwhile
  }
  pollfd fds[2] = {{.fd = worker_fd_, .events = POLLIN}, {.fd = wake_fd_, .events = POLLIN}};
  poll(fds, 2, briefly ? kClosingPollMilliseconds : -1);
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t drained = read(wake_fd_, &count, sizeof(count));
}

}  // namespace ringmaster::worker

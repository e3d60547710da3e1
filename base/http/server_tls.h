#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/steady_now.h"

struct ssl_ctx_st;

namespace ringmaster {

// What a server of TLS shows: a certificate chain and its key, from PEM files. Clients are asked
// for no certificate. Thread-safe.
class ServerTls {
 public:
  // InvalidArgument when a file is missing, or they do not hold a certificate and its key.
  // `now`: a clock that never steps back, which tells when the files are looked at again.
  static absl::StatusOr<std::unique_ptr<ServerTls>> Load(
      std::string certificate_path, std::string key_path,
      std::function<absl::Time()> now = SteadyNow);

  // OpenSSL's context for one more connection. Files that were replaced are taken up within five
  // seconds; while they cannot be used, what was there before is. One caller in five seconds waits
  // for the disk.
  std::shared_ptr<ssl_ctx_st> Context();

 private:
  ServerTls(std::string certificate_path, std::string key_path, std::function<absl::Time()> now)
      : certificate_path_(std::move(certificate_path)),
        key_path_(std::move(key_path)),
        now_(std::move(now)) {}

  // What the files held, and what is made of it.
  struct Loaded {
    std::string certificate;
    std::string key;
    std::shared_ptr<ssl_ctx_st> context;
  };
  // `before` again when nothing has changed since.
  absl::StatusOr<std::shared_ptr<const Loaded>> Read(std::shared_ptr<const Loaded> before) const;

  const std::string certificate_path_;
  const std::string key_path_;
  const std::function<absl::Time()> now_;

  std::mutex mutex_;
  std::shared_ptr<const Loaded> loaded_ ABSL_GUARDED_BY(mutex_);
  absl::Time next_read_ ABSL_GUARDED_BY(mutex_);
  // By one thread: while the file system hangs, the others go on with what there is.
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace ringmaster

#include "coordinator/services/watch_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ringmaster::coordinator {

void WatchStream::Begin(const v1::WatchTrainingJobsRequest& request, const std::string& caller) {
  self_ = shared_from_this();
  hold_ = services_.access->Hold(caller, [weak = weak_from_this()](const absl::Status& status) {
    if (const auto self = weak.lock()) self->DropAndEnd(status);
  });
  services_.loop->Watch(request, self_);
}

void WatchStream::Start(std::vector<WatchMessage> snapshot) {
  std::lock_guard lock(mutex_);
  if (ending_) return;
  snapshot_left_ = snapshot.size();
  messages_.assign(std::make_move_iterator(snapshot.begin()),
                   std::make_move_iterator(snapshot.end()));
  Advance();
}

bool WatchStream::Offer(const WatchMessage& message) {
  std::lock_guard lock(mutex_);
  if (ending_) return true;  // OnDone will say so.
  if (messages_.size() - snapshot_left_ >= services_.watch_buffer) {
    DropWaiting();
    End(Aborted("WATCH_TOO_SLOW", absl::StrCat("more than ", services_.watch_buffer,
                                               " changes waited; watch again")));
    return false;
  }
  messages_.push_back(message);
  Advance();
  return true;
}

void WatchStream::Close(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  End(status);
}

void WatchStream::End(const absl::Status& status) {
  if (ending_) return;
  ending_ = true;
  end_ = status;
  Advance();
}

void WatchStream::DropWaiting() {
  messages_.resize(std::min<size_t>(messages_.size(), writing_));
  snapshot_left_ = std::min(snapshot_left_, messages_.size());
}

void WatchStream::Advance() {
  if (writing_ || finished_) return;
  if (!messages_.empty()) {
    writing_ = true;
    StartWrite(messages_.front().get());
  } else if (ending_) {
    finished_ = true;
    Finish(ToGrpc(end_));
  }
}

void WatchStream::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  writing_ = false;
  messages_.pop_front();
  if (snapshot_left_ > 0) --snapshot_left_;
  if (!ok) {
    DropWaiting();
    End(absl::CancelledError("the client is gone"));
  }
  Advance();
}

void WatchStream::DropAndEnd(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  DropWaiting();
  End(status);
}

void WatchStream::OnCancel() { DropAndEnd(absl::CancelledError("the client is gone")); }

void WatchStream::OnDone() {
  services_.access->Release(hold_);
  services_.loop->Unwatch(self_);
  absl::Status end;
  {
    std::lock_guard lock(mutex_);
    end = end_;
  }
  CountCall(*services_.metrics, kMethod, end);
  self_.reset();
}

}  // namespace ringmaster::coordinator

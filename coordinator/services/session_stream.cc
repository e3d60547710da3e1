#include "coordinator/services/session_stream.h"

#include <algorithm>
#include <utility>

namespace ringmaster::coordinator {

void SessionStream::Begin(const std::string& caller) {
  self_ = shared_from_this();
  {
    // The loop may end it before its number is known here.
    std::lock_guard lock(mutex_);
    stream_ = services_.loop->OpenStream(self_);
  }
  hold_ = services_.access->Hold(caller, [weak = weak_from_this()](const absl::Status& status) {
    if (const auto self = weak.lock()) self->DropAndEnd(status);
  });
  ReadNext();
}

void SessionStream::Send(v1::Directive directive) {
  std::lock_guard lock(mutex_);
  if (ending_) return;
  if (directives_.size() >= kQueuedDirectivesMax) {
    // What waits is worth nothing without the rest: the worker re-attaches and is told again.
    DropWaiting();
    End(Aborted("WORKER_TOO_SLOW", "the worker does not read its directives; attach again"));
    return;
  }
  directives_.push_back(std::move(directive));
  Advance();
}

void SessionStream::Close(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  End(status);
}

void SessionStream::DropAndEnd(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  DropWaiting();
  End(status);
}

void SessionStream::End(const absl::Status& status) {
  if (ending_) return;
  ending_ = true;
  end_ = status;
  // At once: of a worker that reads nothing, the call ends when it likes.
  services_.loop->CloseStream(stream_);
  Advance();
  if (finished_) return;
  services_.access->PostAfter(kEndGrace, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->CancelUnfinished();
  });
}

void SessionStream::CancelUnfinished() {
  std::lock_guard lock(mutex_);
  // Once it has finished, gRPC may have let go of the context.
  if (!finished_) context_->TryCancel();
}

void SessionStream::DropWaiting() {
  directives_.resize(std::min<size_t>(directives_.size(), writing_));
}

void SessionStream::Advance() {
  if (writing_ || finished_) return;
  if (!directives_.empty()) {
    writing_ = true;
    StartWrite(&directives_.front());
  } else if (ending_) {
    finished_ = true;
    Finish(ToGrpc(end_));
  }
}

void SessionStream::OnReadDone(bool ok) {
  std::lock_guard lock(mutex_);
  // The worker has half-closed, or the stream broke.
  if (!ok) End(absl::OkStatus());
  // With the lock: nothing reaches the loop after its end.
  if (ending_) return;
  services_.loop->Report(stream_, std::move(report_),
                         [self = shared_from_this()] { self->ReadNext(); });
}

void SessionStream::ReadNext() {
  std::lock_guard lock(mutex_);
  if (ending_) return;
  report_.Clear();
  StartRead(&report_);
}

void SessionStream::OnWriteDone(bool ok) {
  std::lock_guard lock(mutex_);
  writing_ = false;
  directives_.pop_front();
  if (!ok) {
    DropWaiting();
    End(absl::OkStatus());
  }
  Advance();
}

void SessionStream::OnCancel() { DropAndEnd(absl::CancelledError("the stream broke")); }

void SessionStream::OnDone() {
  services_.access->Release(hold_);
  absl::Status end;
  {
    std::lock_guard lock(mutex_);
    end = end_;
  }
  CountCall(*services_.metrics, kMethod, end);
  self_.reset();
}

}  // namespace ringmaster::coordinator

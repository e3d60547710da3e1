#include "worker/torch_status.h"

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "attention/dilated_attention.h"

namespace ringmaster::worker {
namespace {

absl::Status Prefixed(const absl::Status& status, std::string_view what) {
  absl::Status prefixed(status.code(), absl::StrCat(absl::string_view(what.data(), what.size()),
                                                    ": ", status.message()));
  status.ForEachPayload([&prefixed](absl::string_view url, const absl::Cord& payload) {
    prefixed.SetPayload(url, payload);
  });
  return prefixed;
}

}  // namespace

absl::Status CatchTorch(std::string_view what, absl::FunctionRef<absl::Status()> body) {
  // c10's message without its C++ stack, which says nothing to a user.
  try {
    return body();
  } catch (const attention::ExchangeError& error) {
    return Prefixed(error.status(), what);
  } catch (const c10::OutOfMemoryError& error) {
    return Prefixed(absl::ResourceExhaustedError(error.what_without_backtrace()), what);
  } catch (const std::bad_alloc&) {
    return Prefixed(absl::ResourceExhaustedError("out of host memory"), what);
  } catch (const c10::ValueError& error) {
    return Prefixed(absl::InvalidArgumentError(error.what_without_backtrace()), what);
  } catch (const c10::IndexError& error) {
    return Prefixed(absl::InvalidArgumentError(error.what_without_backtrace()), what);
  } catch (const c10::Error& error) {
    const std::string message = error.what_without_backtrace();
    // The allocator of the CPU has no exception of its own, so only its words tell.
    const bool memory = absl::StrContains(message, "DefaultCPUAllocator: can't allocate memory");
    return Prefixed(memory ? absl::ResourceExhaustedError(message) : absl::InternalError(message),
                    what);
  } catch (const std::exception& error) {
    return Prefixed(absl::InternalError(error.what()), what);
  }
}

}  // namespace ringmaster::worker

#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "attention/exchange/exchange.h"

namespace ringmaster::attention {

// Rows [begin, begin + rows) of a buffer, sent to or received from `peer`.
struct Slice {
  int peer = 0;
  int64_t begin = 0;
  int64_t rows = 0;
};

// One started group of messages between slices of two contiguous buffers, which it keeps alive. Its
// destructor waits, so that no transport writes to memory that an exception has freed. Starts
// nothing when there is nothing to move; then `exchange` may be null. Lives on one thread. Throws
// ExchangeError.
class GroupInFlight {
 public:
  GroupInFlight(GroupedExchange* exchange, const at::Tensor& outgoing,
                const std::vector<Slice>& sends, const at::Tensor& incoming,
                const std::vector<Slice>& receives);
  ~GroupInFlight();
  GroupInFlight(const GroupInFlight&) = delete;
  GroupInFlight& operator=(const GroupInFlight&) = delete;

  void Wait();

 private:
  GroupedExchange* exchange_;
  const at::Tensor outgoing_, incoming_;
  Ticket ticket_;
  bool pending_ = false;
};

}  // namespace ringmaster::attention

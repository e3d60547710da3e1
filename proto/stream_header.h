#pragma once

#include "grpcpp/client_context.h"
#include "grpcpp/support/sync_stream.h"

namespace ringmaster {

// In the initial metadata of a stream of records, which comes as soon as the job is found: the
// coordinator serves it, though there may be nothing to send for long.
inline constexpr char kStreamHeader[] = "ringmaster-stream";

// Waits until `stream`, not yet read, is served or ends; whether it was served. A proxy's own
// metadata is no sign of a coordinator.
template <typename Response>
bool AwaitStream(const grpc::ClientContext& context,
                 grpc::ClientReaderInterface<Response>& stream) {
  stream.WaitForInitialMetadata();
  return context.GetServerInitialMetadata().count(kStreamHeader) > 0;
}

}  // namespace ringmaster

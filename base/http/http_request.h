#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ringmaster {

// What is looked at of a request. Nothing is unescaped: our paths and parameters need no escapes.
struct HttpRequest {
  std::string method;
  // "/jobs/vision/bible", without what follows a '?'.
  std::string path;
  // Of "?state=running&page=x"; of a name that comes twice, the last value.
  std::map<std::string, std::string> parameters;
  // The headers' values; empty when there is none.
  std::string authorization;
  std::string host;
  // Where the client is, as gRPC says it: "ipv4:10.1.2.3:40412".
  std::string peer;
};

// `head`: from the first line to the last header's, with its line ends. InvalidArgument for what is
// no request of HTTP/1.
absl::StatusOr<HttpRequest> ParseHttpRequest(absl::string_view head);

}  // namespace ringmaster

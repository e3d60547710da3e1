#include "base/loopback.h"

#include <arpa/inet.h>

namespace ringmaster {

bool IsLoopback(const std::string& address) {
  // A colon within brackets is the host's.
  const size_t colon = address.rfind(':');
  const bool within = address.find(']', colon) != std::string::npos;
  const std::string host = within ? address : address.substr(0, colon);
  in_addr number = {};
  return host == "localhost" || host == "[::1]" ||
         (inet_pton(AF_INET, host.c_str(), &number) == 1 && ntohl(number.s_addr) >> 24 == 127);
}

}  // namespace ringmaster

#pragma once

#include <string>

namespace ringmaster {

// Whether HOST:PORT, or HOST, is on this machine whatever a name server says: "localhost", "[::1]"
// or all of an address of 127.0.0.0/8. A host's name may begin with "127." as well, and a list of
// addresses, which an HTTP server would take, with a loopback one.
bool IsLoopback(const std::string& address);

}  // namespace ringmaster

#include "worker/comm/ucx_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <ucp/api/ucp_version.h>

#include <cstring>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ringmaster::worker {

namespace {

bool IsAddress(const sockaddr* one, const sockaddr_storage& other) {
  if (one == nullptr || one->sa_family != other.ss_family) {
    return false;
  }
  if (one->sa_family == AF_INET6) {
    return std::memcmp(&reinterpret_cast<const sockaddr_in6*>(one)->sin6_addr,
                       &reinterpret_cast<const sockaddr_in6*>(&other)->sin6_addr,
                       sizeof(in6_addr)) == 0;
  }
  return reinterpret_cast<const sockaddr_in*>(one)->sin_addr.s_addr ==
         reinterpret_cast<const sockaddr_in*>(&other)->sin_addr.s_addr;
}

}  // namespace

std::string UcxAddress::Version() { return absl::StrCat(UCP_API_MAJOR, ".", UCP_API_MINOR); }

std::string UcxAddress::ToString() const {
  return absl::StrCat("ucx/", Version(), "/", generation, "/", rank, "/", nonce, "/", host, "/",
                      port);
}

absl::StatusOr<UcxAddress> UcxAddress::Parse(absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  UcxAddress address;
  if (parts.size() != 7 || parts[0] != "ucx" || !absl::SimpleAtoi(parts[2], &address.generation) ||
      !absl::SimpleAtoi(parts[3], &address.rank) || !absl::SimpleAtoi(parts[4], &address.nonce) ||
      !absl::SimpleAtoi(parts[6], &address.port)) {
    return absl::InvalidArgumentError(absl::StrCat("not the address of a UCX rank: ", text));
  }
  if (parts[1] != Version()) {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", address.rank, " uses UCX ", parts[1], ", this one ", Version(),
                     "; all workers of a ring need the same version"));
  }
  address.host = parts[5];
  return address;
}

absl::StatusOr<sockaddr_storage> SocketAddress(const std::string& host, int port) {
  sockaddr_storage storage = {};
  auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  if (inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
  } else if (inet_pton(AF_INET6, host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("'", host, "' is not a numeric IPv4 or IPv6 address"));
  }
  return storage;
}

int SocketPort(const sockaddr_storage& socket) {
  return ntohs(socket.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6*>(&socket)->sin6_port
                   : reinterpret_cast<const sockaddr_in*>(&socket)->sin_port);
}

bool IsLoopback(const std::string& host) { return absl::StartsWith(host, "127.") || host == "::1"; }

std::string InterfaceOf(const std::string& host) {
  const auto wanted = SocketAddress(host, 0);
  ifaddrs* all = nullptr;
  if (!wanted.ok() || getifaddrs(&all) != 0) {
    return std::string();
  }
  const absl::Cleanup freer = [all] { freeifaddrs(all); };
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    if (IsAddress(one->ifa_addr, *wanted)) {
      // A second address may have a label: "eth0:1".
      const std::string name = one->ifa_name;
      return name.substr(0, name.find(':'));
    }
  }
  return std::string();
}

}  // namespace ringmaster::worker

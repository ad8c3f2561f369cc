#include "student/private_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdlib>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/rpc/channel.h"
#include "common/status.h"

namespace retort {
namespace {

std::string NumericAddress(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = {};
  if (address->sa_family == AF_INET) {
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text, sizeof(text));
  } else if (address->sa_family == AF_INET6) {
    ::inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text, sizeof(text));
  }
  return text;
}

absl::StatusOr<std::string> AddressOfInterface(const std::string& name) {
  in6_addr parsed;
  if (::inet_pton(AF_INET, name.c_str(), &parsed) == 1 || ::inet_pton(AF_INET6, name.c_str(), &parsed) == 1)
    return name;
  ifaddrs* raw = nullptr;
  if (::getifaddrs(&raw) != 0) return ErrnoStatus("list the network interfaces", errno);
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> interfaces(raw, ::freeifaddrs);
  std::string found;
  for (const ifaddrs* i = raw; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || name != i->ifa_name) continue;
    if (i->ifa_addr->sa_family == AF_INET) return NumericAddress(i->ifa_addr);
    // A link-local address is of no use without its interface's number.
    if (i->ifa_addr->sa_family == AF_INET6 && found.empty() &&
        !IN6_IS_ADDR_LINKLOCAL(&reinterpret_cast<const sockaddr_in6*>(i->ifa_addr)->sin6_addr)) {
      found = NumericAddress(i->ifa_addr);
    }
  }
  if (found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(kCommInterfaceVariable, "=", name, ": this machine has no such interface with an address"));
  }
  return found;
}

}  // namespace

absl::StatusOr<std::string> PrivateAddress(const std::string& coordinator) {
  if (const char* name = std::getenv(kCommInterfaceVariable); name != nullptr && *name != '\0') {
    return AddressOfInterface(name);
  }
  if (IsLoopbackAddress(coordinator)) return "127.0.0.1";
  const size_t colon = coordinator.rfind(':');
  std::string host = coordinator.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* raw = nullptr;
  const int error = ::getaddrinfo(host.c_str(), coordinator.substr(colon + 1).c_str(), &hints, &raw);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("resolve the coordinator's ", host, ": ", ::gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(raw, ::freeaddrinfo);
  for (const addrinfo* a = raw; a != nullptr; a = a->ai_next) {
    // Connecting a datagram socket sends nothing; it makes the kernel choose the way.
    const UniqueFd fd(::socket(a->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage own = {};
    socklen_t size = sizeof(own);
    if (fd.valid() && ::connect(fd.get(), a->ai_addr, a->ai_addrlen) == 0 &&
        ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&own), &size) == 0) {
      return NumericAddress(reinterpret_cast<sockaddr*>(&own));
    }
  }
  return absl::UnavailableError(
      absl::StrCat("no route to the coordinator ", coordinator, "; name the interface in ", kCommInterfaceVariable));
}

}  // namespace retort

#include "cli/local/local_port.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"

namespace retort::cli {

absl::Status CheckPortIsFree(int port) {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus("make a socket", errno);
  // As the server does it: connections of an earlier one that the kernel still remembers are no hindrance.
  const int on = 1;
  setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 || listen(fd.get(), 1) != 0) {
    if (errno == EADDRINUSE) {
      return absl::AlreadyExistsError(absl::StrCat(
          "port ", port,
          " of 127.0.0.1 is used by another process; choose another with --port, or none to get a free one"));
    }
    return ErrnoStatus(absl::StrCat("listen on 127.0.0.1:", port), errno);
  }
  return absl::OkStatus();
}

}  // namespace retort::cli

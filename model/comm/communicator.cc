#include "model/comm/communicator.h"

#include "common/check.h"

namespace retort {

absl::Status AllGather(Communicator& comm, ConstBytes mine, absl::Span<const MutableBytes> receive) {
  RETORT_CHECK(receive.size() == static_cast<size_t>(comm.size()));
  const std::vector<ConstBytes> send(receive.size(), mine);
  return comm.Exchange(send, receive);
}

absl::Status SendFrom(Communicator& comm, int source, const std::vector<bool>& wanted, MutableBytes bytes) {
  const auto size = static_cast<size_t>(comm.size());
  RETORT_CHECK(wanted.size() == size && source >= 0 && source < comm.size());
  std::vector<ConstBytes> send(size);
  std::vector<MutableBytes> receive(size);
  if (comm.rank() == source) {
    for (size_t peer = 0; peer < size; ++peer) {
      if (wanted[peer] && peer != static_cast<size_t>(source)) send[peer] = {bytes.data, bytes.size_bytes};
    }
  } else if (wanted[comm.rank()]) {
    receive[source] = bytes;
  }
  return comm.Exchange(send, receive);
}

}  // namespace retort

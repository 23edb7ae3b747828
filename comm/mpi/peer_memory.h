// Memory of another rank of this node: mapped here, or read by the kernel with one copy (process_vm_readv, Linux).
#pragma once
#include <cstddef>

namespace trireme {

struct PeerBytes {
  const std::byte* data;
  int process = 0;  // whose address that is; 0: it is mapped here
  int rank = 0;     // for errors
};

// Lets the processes that the same launcher started read this one's memory, where a Linux security module (Yama) asks
// for that.
void allow_peers_to_read();

// Copies up to `bytes` of another process's memory and returns how many; 0: there is nothing to read, because that
// process has ended or gave the memory back on its way to an error. Throws CommError.
std::size_t read_peer(void* to, PeerBytes from, std::size_t bytes);

}  // namespace trireme

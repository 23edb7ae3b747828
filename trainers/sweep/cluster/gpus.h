// Which GPUs a task gets, chosen as it starts.
#pragma once
#include <vector>

namespace trireme::cluster {

// Free and taken GPUs of hosts with `per_node` each, numbered host by host. A task stays within one host where it can:
// in the fullest host with room, there in the shortest run of neighbours that is long enough. A wider one takes the
// emptiest hosts.
class Gpus {
 public:
  Gpus(int count, int per_node);
  std::vector<int> take(int count);  // ascending; at most `free()`
  void claim(const std::vector<int>& these);
  void release(const std::vector<int>& these);
  int free() const;

 private:
  std::vector<int> free_of(int node) const;
  int per_node_;
  std::vector<char> taken_;
};

}  // namespace trireme::cluster

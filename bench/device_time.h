// How long a GPU takes, by its own clock.
#pragma once
#include <functional>
#include <string>
#include <vector>

namespace trireme::bench {

// Throws UsageError where there is none.
void need_gpu(const std::string& benchmark);

// Mean ms of one of `times` calls in a row of what `f` enqueues on the current stream of the first GPU.
double device_ms(const std::function<void()>& f, int times = 20);

struct DeviceArm {
  std::string name;
  double bytes;  // that it moves at the least
  std::function<void()> run;
  std::vector<double> ms = {};  // one a block

  double median() const;
  double gb_s() const { return bytes / median() / 1e6; }
};
// All arms alternate, block by block, after one block that is not counted.
void take_turns(std::vector<DeviceArm>& arms, int blocks, int times = 20);

}  // namespace trireme::bench

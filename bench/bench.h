// Side-by-side benchmarks, one file each. Every arm is a process (or a group of ranks) that stays alive and steps on
// command, so that arms alternate block by block in one run and share whatever else the machine does.
#pragma once
#include "bench/arm.h"
#include "comm/communicator.h"
#include "comm/registry.h"

#include <functional>
#include <string>
#include <vector>

namespace trireme::bench {

struct Options {
  std::string name;
  bool json = false;
  int blocks = 9;  // timed blocks of each arm, after one that is discarded
  int ranks = 2;   // of benchmarks that say so
  // Part of the benchmark only, in its own words ("all_reduce"). In the processes that `run` starts: their case.
  std::string problem;
  std::string device = "cpu";  // or cuda, of benchmarks that say so
  // Set in the processes that `run` starts: which arm this is, and the folder of its pipes.
  std::string serve, arm;
};

struct Benchmark {
  std::string name, description;
  std::function<nlohmann::json(const Options&)> run;               // the rows
  std::function<void(const Options&, Communicator& world)> serve;  // one of our arms, on each of its ranks
  bool on_devices = false;                                         // heeds `device`
};
using Benchmarks = Registry<Benchmark>;

// One of our own arms on `ranks` ranks (1: no mpirun), and a peer: bench/peers/`script` with the Python that has torch.
std::vector<std::string> own_arm(const Options& o, const std::string& arm, const std::string& problem, int ranks,
                                 const std::string& folder);
// `ranks` > 0: as that many processes under mpirun, for peers that find their rank in its environment.
std::vector<std::string> peer_arm(const std::string& script, const std::vector<std::string>& arguments,
                                  const std::string& folder, int ranks = 0);

// For peers that meet at one.
int free_port();

// A folder that is removed with everything in it.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  std::string path(const std::string& name) const { return dir_ + "/" + name; }

 private:
  std::string dir_;
};

}  // namespace trireme::bench

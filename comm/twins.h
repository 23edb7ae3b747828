// A kernel for host memory and its twin for CUDA under one name: which runs follows from the Place. `x.cpp` defines the
// kernel with its host function; `x.cu` adds itself before main where it is linked. (C++17: nvcc sees it.)
#pragma once
#include "comm/buffer.h"
#include "comm/error.h"

namespace trireme {

// Job: plain arguments, pointers of the place.
template <class Job>
class Kernel {
 public:
  using Host = void (*)(const Job&);
  using Cuda = void (*)(const Job&, Place);
  constexpr Kernel(const char* name, Host host) : name_(name), host_(host) {}

  void operator()(const Job& job, Place place) const {
    if (place.host()) return host_(job);
    if (!cuda_) throw Error(ExitCode::bug, name_, "has no CUDA twin in this program");
    cuda_(job, place);
  }

  struct Twin {
    Twin(Kernel& kernel, Cuda cuda) { kernel.cuda_ = cuda; }
  };

 private:
  const char* name_;
  Host host_;
  Cuda cuda_ = nullptr;
};

}  // namespace trireme

// Collectives that run beside kernels which need the whole device.
#pragma once

namespace trireme {

// While one with `yes` lives, calls of its thread may be slower and leave the multiprocessors to other work: a
// collective's kernel holds each of its own until all ranks have come, and NCCL takes up to 32. For calls that long
// kernels hide; what nothing runs beside wants all its bandwidth. All ranks alike. NCCL alone heeds it.
class BesideComputation {
 public:
  explicit BesideComputation(bool yes) : before_(now_) { now_ = yes; }
  ~BesideComputation() { now_ = before_; }
  BesideComputation(const BesideComputation&) = delete;
  BesideComputation& operator=(const BesideComputation&) = delete;
  static bool now() { return now_; }

 private:
  static inline thread_local bool now_ = false;
  const bool before_;
};

}  // namespace trireme

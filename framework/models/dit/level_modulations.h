// What forwards of a picture make of the time and the condition alone, made once for all of its levels: their weights
// (a quarter of FLUX's) are then read once a picture instead of once a step. Of one model, whose weights stay. Not
// thread-safe.
#pragma once
#include "framework/models/dit/denoiser.h"

#include <list>
#include <vector>

namespace trireme {

class LevelModulations {
 public:
  // `c` with its part at `sigma`, if that is one of `levels` (which end with 0, where no forward is); else, where
  // gradients are wanted, and of a model that has no such part: as it is. The same tensors of a condition are taken for
  // the same condition.
  Conditioning at(Denoiser& model, const Conditioning& c, const std::vector<double>& levels, double sigma);
  void clear() { tables_.clear(); }

 private:
  struct Table {
    at::Tensor pooled, guidance;
    std::vector<double> levels;
    at::Tensor rows;  // [S, B, n], or undefined
  };
  std::list<Table> tables_;  // the newest first
};

}  // namespace trireme

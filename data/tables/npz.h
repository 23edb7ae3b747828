// The prepared form of facebookresearch/dlrm: kaggleAdDisplayChallenge_processed.npz, with X_int [n, 13], X_cat [n, 26]
// of ids by first appearance, y [n] and counts [26].
#pragma once
#include "data/tables/file.h"

#include <map>
#include <span>
#include <string>
#include <vector>

namespace trireme {

struct NpyArray {
  char kind = 'i';  // i or f
  int bytes = 4;    // of an element, little endian
  std::vector<std::int64_t> shape;
  std::string data;
  double at(std::int64_t k) const;
};

// The arrays of a NumPy .npz, whole, in memory: stored or deflated, zip64 too. DataError naming what is damaged.
std::map<std::string, NpyArray> read_npz(std::span<const std::uint8_t> file, const std::string& path);

// Seven days of equal length, as prepare_criteo() has them.
TableFileInfo prepare_criteo_npz(const std::string& from, const std::string& out, const std::string& source = {});

// Parts of one file of n samples: six days of seven train, the last is halved into test and validation.
void seven_days(TableFileInfo& info);

}  // namespace trireme

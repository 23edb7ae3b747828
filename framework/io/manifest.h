// manifest.json of a checkpoint: what every file and tensor in it must be.
#pragma once
#include "comm/archive.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct Manifest {
  struct File {
    std::string name;  // rank_%05d.h5, in rank order
    std::uint64_t size = 0;
    std::uint32_t crc32c = 0;
  };
  struct Tensor {
    std::string name;
    DType dtype = DType::f32;
    std::vector<std::int64_t> shape;
    Sharing sharing;
    bool is_text = false;
    int rank = 0;  // whose file holds it
    std::uint32_t crc32c = 0;
  };
  static constexpr int version = 1;

  std::int64_t step = 0;
  int world_size = 1;
  bool best = false;
  std::string extra = "{}";  // JSON object of the caller: bucket layout, versions
  std::vector<File> files;
  std::vector<Tensor> tensors;

  std::string print() const;  // ends in a checksum over all text before it
  // `place` names the file in errors. Throws DataError on anything unexpected; safe on hostile text.
  static Manifest parse(std::string_view text, const std::string& place);
};

std::string rank_file(int rank);

// One rank's part, as it travels to rank 0.
std::string print_part(const Manifest::File& file, const std::vector<Manifest::Tensor>& tensors);
void add_part(Manifest& to, std::string_view text);

}  // namespace trireme

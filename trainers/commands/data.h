// `trireme data NAME`: prepares an image-text data set as one HDF5 file, or as tars.
#pragma once
#include <string>

namespace trireme {

struct DataOptions {
  std::string name;    // openclipart, emoji, folder, tars, tar or scenes
  std::string out;     // empty: in the cache, one file for each name, size and source
  std::string from;    // source folder, table or tars; required by `folder`, `tars` and `tar`, else the packages' place
  int size = 64;       // pixels of the square
  int threads = 0;     // decoders; 0: one a core
  bool force = false;  // prepare again although the file is there
  // Of scenes: pairs to train on and beside them, seed, h5 or tar.
  int pairs = 100000, held_out = 5000, seed = 1;
  std::string format = "h5";
};

// Summary on stdout, progress on stderr; returns 0. A sound file that is already there is kept (unless `force`); one
// that is damaged, or was prepared from another place, is made anew in the cache and refused as `out`. Throws
// UsageError, DataError.
int data_command(const DataOptions& options);

}  // namespace trireme

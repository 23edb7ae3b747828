// `trireme data NAME`: prepares an image-text data set as one HDF5 file.
#pragma once
#include <string>

namespace trireme {

struct DataOptions {
  std::string name;    // openclipart, emoji or folder
  std::string out;     // empty: in the cache, one file for each name, size and source
  std::string from;    // source folder or table; required by `folder`, else the packages' place
  int size = 64;       // pixels of the square
  int threads = 2;     // decoders
  bool force = false;  // prepare again although the file is there
};

// Summary on stdout, progress on stderr; returns 0. A sound file that is already there is kept (unless `force`); one
// that is damaged, or was prepared from another place, is made anew in the cache and refused as `out`. Throws
// UsageError, DataError.
int data_command(const DataOptions& options);

}  // namespace trireme

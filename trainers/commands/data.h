// `trireme data NAME`: prepares an image-text data set as one HDF5 file.
#pragma once
#include <string>

namespace trireme {

struct DataOptions {
  std::string name;    // openclipart, emoji or folder
  std::string out;     // empty: prepared_path(name, size)
  std::string from;    // source folder or table; required by `folder`, else the packages' place
  int size = 64;       // pixels of the square
  int threads = 2;     // decoders
  bool force = false;  // prepare again although the file is there
};

// Summary on stdout, progress on stderr; returns 0. A sound file that is already there is kept (unless
// `force`), a damaged one in the cache is made anew. Throws UsageError, DataError.
int data_command(const DataOptions& options);

}  // namespace trireme

// One rank's file of a checkpoint: an HDF5 file whose size and tensors the manifest knows by CRC32C.
#pragma once
#include "framework/io/checkpoint.h"
#include "framework/io/manifest.h"

namespace trireme {

class FileIo;

// Builds the file in memory and writes it durably; entries are released as they are copied. Returns its part of the
// manifest.
std::string write_rank_file(FileIo& io, const std::string& folder, int rank, Snapshot snapshot);

// Reads it whole, checked against the manifest, and hands every wanted tensor to `take`. DataError naming the file.
void read_rank_file(FileIo& io, const std::string& folder, const Manifest& m, int rank,
                    const std::function<bool(const Manifest::Tensor&)>& wanted,
                    const std::function<void(const Manifest::Tensor&, SharedBytes)>& take);

// A text of rank 0's file, of which only its size and this are read and checked; none if it has no such text.
std::optional<std::string> read_rank_text(const std::string& folder, const Manifest& m, const std::string& name);

}  // namespace trireme

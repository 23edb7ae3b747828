// Features of a frozen model for every pair of a data set, made once by `trireme data cache-reference`. An HDF5 file:
//   image, text  [n, d] f16 (bit patterns, as data/hdf5.h has them) or f32, contiguous: row i is sample i, unit length;
//                zeros where the data has no such sample
//   texts identity (Pairs::identity), model (as the user called it), weights (their fingerprint)
#pragma once
#include "data/hdf5.h"
#include "data/image_text/pairs.h"
#include "data/mapped_file.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme {

struct ReferenceRows {
  at::Tensor image, text;  // [m, d]
};

// Memory-mapped: rows are read where they are asked for, and the file must not shrink while it is open. Const members
// are thread safe.
class ReferenceFeatures {
 public:
  // DataError with the cure: no such file, another or a cut one, or features of other data than `data`.
  ReferenceFeatures(const std::string& path, const Pairs& data);

  std::int64_t size() const { return n_; }
  std::int64_t width() const { return d_; }
  at::ScalarType type() const { return type_; }
  const std::string& model() const { return model_; }
  const std::string& weights() const { return weights_; }
  // Of these samples, in the file's type, on the host. DataError: a sample without features, or a damaged row.
  ReferenceRows rows(std::span<const std::int64_t> ids) const;

 private:
  void check(const Hdf5File& file, const Pairs& data);
  void map(const Hdf5File& file);
  at::Tensor take(const char* side, const std::byte* from, std::span<const std::int64_t> ids) const;

  std::string path_, model_, weights_;
  std::int64_t n_ = 0, d_ = 0;
  at::ScalarType type_ = at::kFloat;
  std::optional<MappedFile> mapped_;
  const std::byte *image_ = nullptr, *text_ = nullptr;
};

// Writes such a file under `path` itself; see write_whole() in data/file.h.
class ReferenceFeaturesWriter {
 public:
  // n: samples of the data; d: width; type: f16 or f32.
  ReferenceFeaturesWriter(const std::string& path, std::int64_t n, std::int64_t d, at::ScalarType type,
                          const std::string& identity, const std::string& model, const std::string& weights);
  // image, text [m, d] of these samples, on the host.
  void write(std::span<const std::int64_t> ids, const ReferenceRows& rows);
  void close() { file_.close(); }

 private:
  Hdf5File file_;
  at::ScalarType type_;
};

}  // namespace trireme

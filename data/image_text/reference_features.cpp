#include "data/image_text/reference_features.h"

#include "comm/error.h"

#include <cstring>
#include <filesystem>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr const char* make_anew = "make it anew: trireme data cache-reference MODEL DATA";

std::string text_of(const Hdf5File& file, const char* name) { return file.has(name) ? file.read_text(name) : ""; }

}  // namespace

ReferenceFeatures::ReferenceFeatures(const std::string& path, const Pairs& data) : path_(path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) throw DataError(path, "no such file", make_anew);
  const Hdf5File file = [&] {
    try {
      return Hdf5File::open(path);
    } catch (const DataError& e) {
      throw DataError("", e.what(), make_anew);
    }
  }();
  check(file, data);
  map(file);
}

void ReferenceFeatures::check(const Hdf5File& file, const Pairs& data) {
  for (const char* name : {"image", "text", "identity", "model", "weights"})
    if (!file.has(name)) throw DataError(path_, std::string("is no file of features: it has no ") + name, make_anew);
  const Hdf5File::Array image = file.array("image"), text = file.array("text");
  const bool known = image.dtype == DType::f16 || image.dtype == DType::f32;
  if (!known || image.dtype != text.dtype || image.shape.size() != 2 || image.shape != text.shape || image.shape[1] < 1)
    throw DataError(path_, "image and text are not two arrays [n, d] of f16 or of f32", make_anew);
  n_ = image.shape[0], d_ = image.shape[1];
  type_ = image.dtype == DType::f16 ? at::kHalf : at::kFloat;
  model_ = text_of(file, "model"), weights_ = text_of(file, "weights");
  if (n_ != data.size() || text_of(file, "identity") != data.identity())
    throw DataError(path_,
                    "holds features of other data: " + std::to_string(n_) + " samples, " + data.path() + " has " +
                        std::to_string(data.size()) + (n_ == data.size() ? " others" : ""),
                    make_anew);
}

void ReferenceFeatures::map(const Hdf5File& file) {
  mapped_.emplace(path_);
  const auto begin = [&](const char* name) {
    const std::byte* rows =
        mapped_->rows(std::uint64_t(file.offset(name)), std::uint64_t(n_), std::uint64_t(d_) * at::elementSize(type_));
    if (!rows) throw DataError(path_, "is cut short", make_anew);
    return rows;
  };
  image_ = begin("image"), text_ = begin("text");
}

ReferenceRows ReferenceFeatures::rows(std::span<const std::int64_t> ids) const {
  return {take("image", image_, ids), take("text", text_, ids)};
}

at::Tensor ReferenceFeatures::take(const char* side, const std::byte* from, std::span<const std::int64_t> ids) const {
  const at::NoGradGuard no_grad;
  at::Tensor rows = at::empty({std::int64_t(ids.size()), d_}, type_);
  const std::size_t bytes = std::size_t(d_) * rows.element_size();
  auto* to = static_cast<std::byte*>(rows.data_ptr());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= n_)
      throw DataError(path_, "has no sample " + std::to_string(ids[i]) + " among " + std::to_string(n_));
    std::memcpy(to + i * bytes, from + std::size_t(ids[i]) * bytes, bytes);
  }
  const at::Tensor off = ((rows.to(at::kFloat).square().sum(1) - 1).abs() < 0.02).logical_not();  // NaN as well
  if (off.any().item<bool>())
    throw DataError(path_,
                    std::string(side) + " row " +
                        std::to_string(ids[std::size_t(off.to(at::kInt).argmax().item<std::int64_t>())]) +
                        " is not of unit length",
                    make_anew);
  return rows;
}

ReferenceFeaturesWriter::ReferenceFeaturesWriter(const std::string& path, std::int64_t n, std::int64_t d,
                                                 at::ScalarType type, const std::string& identity,
                                                 const std::string& model, const std::string& weights)
    : file_(Hdf5File::create(path)), type_(type) {
  const std::int64_t shape[] = {n, d};
  for (const char* side : {"image", "text"})
    file_.create_plain_array(side, type == at::kHalf ? DType::f16 : DType::f32, shape);
  file_.write_text("identity", identity);
  file_.write_text("model", model);
  file_.write_text("weights", weights);
}

void ReferenceFeaturesWriter::write(std::span<const std::int64_t> ids, const ReferenceRows& rows) {
  const at::Tensor image = rows.image.to(type_).contiguous(), text = rows.text.to(type_).contiguous();
  const std::size_t bytes = std::size_t(image.size(1)) * image.element_size();
  for (std::size_t i = 0, n = 0; i < ids.size(); i += n) {
    for (n = 1; i + n < ids.size() && ids[i + n] == ids[i] + std::int64_t(n);) ++n;
    for (const auto& [name, side] : {std::pair("image", image), std::pair("text", text)})
      file_.write_rows(name, ids[i], std::int64_t(n), static_cast<const std::byte*>(side.const_data_ptr()) + i * bytes);
  }
}

}  // namespace trireme

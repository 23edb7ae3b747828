#include "framework/io/rank_file.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "data/hdf5.h"
#include "framework/io/read_into.h"

#include <filesystem>

namespace trireme {
namespace {

std::int64_t rows_of(const std::vector<std::int64_t>& shape) { return shape.empty() ? 1 : shape[0]; }

std::size_t bytes_of(DType dtype, const std::vector<std::int64_t>& shape) {
  std::size_t n = size_of(dtype);
  for (std::int64_t d : shape) n *= std::size_t(d);
  return n;
}

void check_size(const std::string& path, std::size_t size, std::size_t written) {
  if (size != written)
    throw DataError(path, std::to_string(size) + " bytes, " + std::to_string(written) + " were written");
}

// Where it lies in the file's image, if it is in one piece.
SharedBytes read_tensor(const Hdf5File& file, const Manifest::Tensor& t, const std::string& path,
                        std::size_t file_size, const SharedBytes& image = {}) {
  const auto array = file.array(t.name);
  if (array.dtype != t.dtype || array.shape != t.shape)
    throw DataError(path + ": " + t.name, "not the dtype and shape of the manifest");
  if (bytes_of(t.dtype, t.shape) > file_size) throw DataError(path + ": " + t.name, "larger than its file");
  const std::size_t size = bytes_of(t.dtype, t.shape);
  const std::byte* there = file.in_image(t.name, size);
  const SharedBytes data = there ? image.part(std::size_t(there - image.data()), size) : SharedBytes(size);
  if (!there) file.read_rows(t.name, 0, rows_of(t.shape), data.data());
  if (crc32c(data.data(), data.size()) != t.crc32c)
    throw DataError(path + ": " + t.name, "the checksum is wrong: the file is damaged");
  return data;
}

SharedBytes room_for(const std::string& path, std::size_t size) {
  try {
    return SharedBytes(size);
  } catch (const std::bad_alloc&) {
    throw DataError(path, "its " + std::to_string(size) + " bytes do not fit into memory");
  }
}

}  // namespace

std::string write_rank_file(FileIo& io, const std::string& folder, int rank, Snapshot snapshot) {
  const std::string path = folder + "/" + rank_file(rank);
  std::vector<Manifest::Tensor> tensors;
  auto file = Hdf5File::create_in_memory(path);
  for (auto& [name, e] : snapshot.entries) {
    file.create_plain_array(name, e.dtype, e.shape);
    file.write_rows(name, 0, rows_of(e.shape), e.bytes.data());
    const auto crc = crc32c(e.bytes.data(), e.bytes.size());
    tensors.push_back({name, e.dtype, e.shape, e.sharing, e.is_text, rank, crc});
    e.bytes = {};
  }
  const auto image = file.image();
  write_durably(io, path, image);
  sync_folder(io, folder);
  return print_part({rank_file(rank), image.size(), crc32c(image.data(), image.size())}, tensors);
}

void read_rank_file(FileIo& io, const std::string& folder, const Manifest& m, int rank,
                    const std::function<bool(const Manifest::Tensor&)>& wanted,
                    const std::function<void(const Manifest::Tensor&, SharedBytes)>& take) {
  const auto& expected = m.files[std::size_t(rank)];
  const std::string path = folder + "/" + expected.name;
  const SharedBytes image = room_for(path, expected.size);
  std::uint32_t crc = 0;
  const auto add = [&](std::span<const std::byte> piece) { crc = crc32c(piece.data(), piece.size(), crc); };
  check_size(path, read_into(io, path, image.span(), add), expected.size);
  if (crc != expected.crc32c) throw DataError(path, "the checksum is wrong: the file is damaged");
  const auto file = Hdf5File::open_image(path, image.span());
  for (const auto& t : m.tensors) {
    if (t.rank != rank || !wanted(t)) continue;
    take(t, read_tensor(file, t, path, expected.size, image));
  }
}

std::optional<std::string> read_rank_text(const std::string& folder, const Manifest& m, const std::string& name) {
  const std::string path = folder + "/" + rank_file(0);
  for (const auto& t : m.tensors) {
    if (t.rank != 0 || !t.is_text || t.name != name) continue;
    std::error_code failed;
    if (const auto size = std::filesystem::file_size(path, failed); !failed) check_size(path, size, m.files[0].size);
    const auto data = read_tensor(Hdf5File::open(path), t, path, m.files[0].size);
    return std::string(reinterpret_cast<const char*>(data.data()), data.size());
  }
  return std::nullopt;
}

}  // namespace trireme

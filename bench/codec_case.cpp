#include "bench/codec_case.h"

#include "bench/embedding_rows.h"
#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <fstream>

#include <ATen/ATen.h>

namespace trireme::bench {

at::Tensor rows_on_gpu(std::size_t chunks, std::size_t rows, std::size_t dim) {
  auto values = embedding_rows(chunks, rows, dim, 1);
  return at::from_blob(values.data(), {std::int64_t(chunks), std::int64_t(rows), std::int64_t(dim)}, at::kFloat)
      .to(at::kCUDA);
}

at::Tensor rows_on_gpu(const std::filesystem::path& folder, std::size_t rows, std::size_t dim) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".f32") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  const auto table = [](const std::filesystem::path& file) {  // table_T of table_T_batch_K.f32
    const std::string name = file.filename().string();
    return name.substr(0, name.find("_batch_"));
  };
  for (const auto& file : files)
    if (table(file) != table(files[0]))
      throw DataError(folder.string(), "holds rows of " + table(files[0]) + " and of " + table(file),
                      "keep one table's: mv " + table(file) + "_batch_*.f32 to a folder of its own, and name that");
  if (files.empty())
    throw DataError(folder.string(), "holds no .f32 file", "let `trireme dlrm analyze --dump` fill it");
  const std::size_t each = rows * dim;
  std::vector<float> values(files.size() * each);
  for (std::size_t k = 0; k < files.size(); ++k) {
    std::ifstream in(files[k], std::ios::binary);
    in.read(reinterpret_cast<char*>(values.data() + k * each), std::streamsize(each * sizeof(float)));
    if (!in || in.peek() != EOF)
      throw DataError(files[k].string(), "does not hold " + std::to_string(rows) + " x " + std::to_string(dim) + " f32",
                      "dump one table of that width with --rows " + std::to_string(rows));
  }
  return at::from_blob(values.data(), {std::int64_t(files.size()), std::int64_t(rows), std::int64_t(dim)}, at::kFloat)
      .to(at::kCUDA);
}

CodecCase::CodecCase(const at::Tensor& in, const BoundedOptions& options, float bound) : codec_(options), in_(in) {
  back_ = at::empty_like(in_);
  const auto chunks = std::size_t(in.size(0)), rows = std::size_t(in.size(1)), dim = std::size_t(in.size(2));
  for (std::size_t k = 0; k < chunks; ++k) {
    TableChunk c;
    c.rows = in_.const_data_ptr<float>() + k * rows * dim;
    c.n = rows, c.dim = dim, c.bound = bound, c.scope = std::uint32_t(k);
    chunks_.push_back(c);
  }
  out_ = bytes(chunks * codec_.max_bytes(rows, dim));
  sizes_ = at::empty({in.size(0)}, in_.options().dtype(at::kLong));
  scratch_ = bytes(codec_.scratch_bytes(chunks_));
  status_ = at::empty({1}, in_.options().dtype(at::kInt));
  encode();
  const at::Tensor sizes = sizes_.cpu();
  for (std::size_t k = 0; k < chunks; ++k) {
    const auto size = std::size_t(sizes.const_data_ptr<std::int64_t>()[k]);
    coded_.push_back({static_cast<const std::uint8_t*>(out_.data_ptr()) + coded_bytes_, size,
                      back_.data_ptr<float>() + k * rows * dim, rows, dim});
    coded_bytes_ += size;
  }
  decode_scratch_ = bytes(codec_.decode_scratch_bytes(coded_));
}

at::Tensor CodecCase::bytes(std::size_t n) const {
  return at::empty({std::int64_t(n)}, in_.options().dtype(at::kByte));
}

void CodecCase::encode() { codec_.encode(chunks_, buffer_of(out_), buffer_of(sizes_), buffer_of(scratch_)); }

void CodecCase::decode() {
  codec_.decode(coded_, buffer_of(in_).place, reinterpret_cast<std::uint32_t*>(status_.data_ptr()),
                buffer_of(decode_scratch_));
}

RecordedCase::RecordedCase(CodecCase& one) {
  one.encode(), one.decode();
  encode = make_step_graph(one.decoded().get_device(), GraphMemory::own);
  decode = make_step_graph(one.decoded().get_device(), GraphMemory::own);
  encode_nodes = encode->capture([&] { one.encode(); });
  decode_nodes = decode->capture([&] { one.decode(); });
}

bool CodecCase::good() const { return status_.item<int>() == 0; }

}  // namespace trireme::bench

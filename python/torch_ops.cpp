// The error-bounded codec as operators of PyTorch: torch.ops.load_library("libtrireme_torch.so"); docs/codecs.md has
// ten lines that use them.
//
// encode(x, rows, bound, codec, relative, shared_range) -> (bytes, sizes): x [n x dim] f32 whose rows are contiguous,
//   cut into chunks of rows[k] rows. bytes: u8, room for the longest codes, the codes one after another at its
//   beginning; sizes: i64, bytes of each, where x lies.
// decode(bytes, sizes, rows, dim) -> x. Bad bytes: RuntimeError; on a GPU it therefore waits for its result.
// decode_async(bytes, sizes, rows, dim) -> (x, status): waits for nothing; status: i32, 0 or 1 + number of a bad chunk.
//
// x and bytes are read and written where they are, on x's current stream; encode and decode_async can be captured.
#include "comm/error.h"
#include "compression/codecs/bounded.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

namespace trireme {
namespace {

using at::IntArrayRef;
using at::Tensor;

Place place_of(const Tensor& t) {
  if (!t.is_cuda()) return {};
  const c10::Stream stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(t.device());
  return {t.device().index(), stream.native_handle()};
}

Buffer bytes_of(const Tensor& t) { return {t.data_ptr(), std::size_t(t.numel()), DType::u8, place_of(t)}; }

Tensor make(std::int64_t n, at::ScalarType type, const Tensor& like) {
  return at::empty({n}, like.options().dtype(type));
}

Bounded codec_of(std::string_view name, bool relative) {
  BoundedOptions o;
  o.codec = name;
  o.relative = relative;
  return Bounded(o, "trireme::encode");
}

void check_rows(const Tensor& x, IntArrayRef rows) {
  TORCH_CHECK_VALUE(x.dim() == 2 && x.scalar_type() == at::kFloat, "trireme::encode: x is not [rows x dim] of float32");
  TORCH_CHECK_VALUE(x.size(1) > 0 && (x.stride(1) == 1 || x.size(1) == 1) && x.stride(0) >= x.size(1),
                    "trireme::encode: the values of a row are not side by side: call x.contiguous()");
  std::int64_t sum = 0;
  for (const auto n : rows) {
    TORCH_CHECK_VALUE(n >= 0, "trireme::encode: a chunk has ", n, " rows");
    sum += n;
  }
  TORCH_CHECK_VALUE(sum == x.size(0), "trireme::encode: the chunks have ", sum, " rows, x has ", x.size(0));
}

std::int64_t room_for(const Bounded& codec, IntArrayRef rows, std::int64_t dim) {
  std::size_t room = 0;
  for (const auto n : rows) room += codec.max_bytes(std::size_t(n), std::size_t(dim));
  return std::int64_t(room);
}

std::tuple<Tensor, Tensor> encode(const Tensor& x, IntArrayRef rows, double bound, std::string_view name, bool relative,
                                  bool shared_range) {
  check_rows(x, rows);
  const c10::OptionalDeviceGuard guard(x.is_cuda() ? std::optional(x.device()) : std::nullopt);
  const Bounded codec = codec_of(name, relative);
  std::vector<TableChunk> chunks(rows.size());
  const float* from = x.const_data_ptr<float>();
  for (std::size_t k = 0; k < rows.size(); ++k) {
    TableChunk& c = chunks[k];
    c.rows = from;
    c.n = std::size_t(rows[k]), c.dim = std::size_t(x.size(1)), c.stride = std::size_t(x.stride(0));
    c.bound = float(bound);
    c.scope = shared_range ? 0 : std::uint32_t(k);
    from += rows[k] * x.stride(0);
  }
  const Tensor out = make(room_for(codec, rows, x.size(1)), at::kByte, x), sizes = make(rows.size(), at::kLong, x),
               scratch = make(x.is_cuda() ? std::int64_t(codec.scratch_bytes(chunks)) : 0, at::kByte, x);
  codec.encode(chunks, bytes_of(out), {sizes.data_ptr(), rows.size(), DType::i64, place_of(x)}, bytes_of(scratch));
  return {out, sizes};
}

std::tuple<Tensor, Tensor> decode_async(const Tensor& bytes, IntArrayRef sizes, IntArrayRef rows, std::int64_t dim) {
  TORCH_CHECK_VALUE(bytes.dim() == 1 && bytes.scalar_type() == at::kByte && bytes.is_contiguous(),
                    "trireme::decode: bytes is not a contiguous list of uint8");
  TORCH_CHECK_VALUE(sizes.size() == rows.size() && dim > 0, "trireme::decode: sizes and rows do not match");
  std::int64_t all = 0, n = 0;
  for (std::size_t k = 0; k < rows.size(); ++k) {
    TORCH_CHECK_VALUE(sizes[k] >= 0 && rows[k] >= 0 && sizes[k] <= bytes.numel() - all, "trireme::decode: chunk ", k,
                      " lies beyond the bytes");
    all += sizes[k], n += rows[k];
  }
  const c10::OptionalDeviceGuard guard(bytes.is_cuda() ? std::optional(bytes.device()) : std::nullopt);
  const Tensor x = at::empty({n, dim}, bytes.options().dtype(at::kFloat)),
               status = at::zeros({1}, bytes.options().dtype(at::kInt));
  const Bounded codec = codec_of("auto", true);
  std::vector<CodedChunk> chunks(rows.size());
  const auto* code = bytes.const_data_ptr<std::uint8_t>();
  auto* to = x.data_ptr<float>();
  for (std::size_t k = 0; k < rows.size(); ++k) {
    chunks[k] = {code, std::size_t(sizes[k]), to, std::size_t(rows[k]), std::size_t(dim), 0};
    code += sizes[k], to += rows[k] * dim;
  }
  const Tensor scratch = make(bytes.is_cuda() ? std::int64_t(codec.decode_scratch_bytes(chunks)) : 0, at::kByte, bytes);
  codec.decode(chunks, place_of(bytes), reinterpret_cast<std::uint32_t*>(status.data_ptr()), bytes_of(scratch));
  return {x, status};
}

Tensor decode(const Tensor& bytes, IntArrayRef sizes, IntArrayRef rows, std::int64_t dim) {
  const auto [x, status] = decode_async(bytes, sizes, rows, dim);
  const int bad = bytes.is_cuda() ? status.item<int>() : 0;
  TORCH_CHECK(bad == 0, "codec bounded, chunk ", bad - 1, ": bad bytes; do all ranks run the same program?");
  return x;
}

// Shapes alone, for torch.compile.
std::tuple<Tensor, Tensor> encode_meta(const Tensor& x, IntArrayRef rows, double, std::string_view name, bool relative,
                                       bool) {
  check_rows(x, rows);
  return {make(room_for(codec_of(name, relative), rows, x.size(1)), at::kByte, x), make(rows.size(), at::kLong, x)};
}
Tensor decode_meta(const Tensor& bytes, IntArrayRef, IntArrayRef rows, std::int64_t dim) {
  std::int64_t n = 0;
  for (const auto r : rows) n += r;
  return at::empty({n, dim}, bytes.options().dtype(at::kFloat));
}
std::tuple<Tensor, Tensor> decode_async_meta(const Tensor& bytes, IntArrayRef sizes, IntArrayRef rows,
                                             std::int64_t dim) {
  return {decode_meta(bytes, sizes, rows, dim), make(1, at::kInt, bytes)};
}

template <class E, class D, class A>
void add(torch::Library& m, E encode_, D decode_, A decode_async_) {
  m.impl("encode", encode_);
  m.impl("decode", decode_);
  m.impl("decode_async", decode_async_);
}

}  // namespace

TORCH_LIBRARY(trireme, m) {
  m.def(
      "encode(Tensor x, int[] rows, float bound, str codec='auto', bool relative=True, bool shared_range=True) -> "
      "(Tensor bytes, Tensor sizes)");
  m.def("decode(Tensor bytes, int[] sizes, int[] rows, int dim) -> Tensor");
  m.def("decode_async(Tensor bytes, int[] sizes, int[] rows, int dim) -> (Tensor x, Tensor status)");
}
TORCH_LIBRARY_IMPL(trireme, CPU, m) { add(m, encode, decode, decode_async); }
TORCH_LIBRARY_IMPL(trireme, CUDA, m) { add(m, encode, decode, decode_async); }
TORCH_LIBRARY_IMPL(trireme, Meta, m) { add(m, encode_meta, decode_meta, decode_async_meta); }

}  // namespace trireme

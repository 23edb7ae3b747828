#include "bench/nvcomp.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <cstring>

#include <ATen/ATen.h>

#include <dlfcn.h>

namespace trireme::bench {
namespace {

// Every option struct of these calls has 64 bytes and travels by value; what is not named is zero.
struct alignas(8) Options {
  unsigned char bytes[64] = {};
  template <class T>
  void set(std::size_t at, T value) {
    std::memcpy(bytes + at, &value, sizeof value);
  }
};
constexpr int type_char = 0, type_bits = 0xff, type_float = 11, lossy_signed = 1;

// Compressing: {i32 algorithm, i32 type, ...}; Bitcomp goes on {f64 delta, i32 mode}. Decompressing: {i32 backend,
// ...}; ANS goes on {i32 type}.
Options compress_options(Nvcomp::Coder coder, double delta) {
  Options o;
  o.set<std::int32_t>(4, coder == Nvcomp::Coder::ans ? type_char : type_float);
  if (coder == Nvcomp::Coder::bitcomp_lossy) o.set<double>(8, delta), o.set<std::int32_t>(16, lossy_signed);
  return o;
}
Options decompress_options(Nvcomp::Coder coder) {
  Options o;
  if (coder == Nvcomp::Coder::ans) o.set<std::int32_t>(4, type_bits);
  return o;
}

struct Functions {
  int (*temp_size)(std::size_t chunks, std::size_t chunk, Options, std::size_t* bytes, std::size_t all, void* stream);
  int (*most)(std::size_t chunk, Options, std::size_t* bytes);
  int (*compress)(const void* const* in, const std::size_t* in_bytes, std::size_t chunk, std::size_t chunks, void* temp,
                  std::size_t temp_bytes, void* const* out, std::size_t* out_bytes, Options, int* status, void* stream);
  int (*decode_temp_size)(std::size_t chunks, std::size_t chunk, Options, std::size_t* bytes, std::size_t all,
                          void* stream);
  int (*decompress)(const void* const* in, const std::size_t* in_bytes, const std::size_t* room, std::size_t* out_bytes,
                    std::size_t chunks, void* temp, std::size_t temp_bytes, void* const* out, Options, int* status,
                    void* stream);
};

Functions load(const std::string& path, Nvcomp::Coder coder) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library)
    throw UsageError(path, "cannot be loaded: " + std::string(dlerror()),
                     "give libnvcomp.so.6 of the wheel nvidia-libnvcomp-cu13");
  const std::string name = coder == Nvcomp::Coder::ans ? "nvcompBatchedANS" : "nvcompBatchedBitcomp";
  Functions f;
  const auto find = [&](auto& function, const char* what) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, (name + what).c_str()));
    if (!function) throw UsageError(path, "has no " + name + what, "nvCOMP 6.0 has it");
  };
  find(f.temp_size, "CompressGetTempSize");
  find(f.most, "CompressGetMaxOutputChunkSize");
  find(f.compress, "CompressAsync");
  find(f.decode_temp_size, "DecompressGetTempSize");
  find(f.decompress, "DecompressAsync");
  return f;
}

void check(int status, const char* what) {
  if (status != 0)
    throw UsageError("nvcomp", std::string(what) + " answers " + std::to_string(status), "does this GPU suit it?");
}

}  // namespace

struct Nvcomp::Parts {
  Functions f;
  Options compress, decompress;
  std::size_t chunks, chunk, temp_bytes = 0;
  at::Tensor in = {}, back = {}, out = {}, temp = {}, in_at = {}, out_at = {}, back_at = {};
  at::Tensor in_bytes = {}, out_bytes = {}, back_bytes = {}, status = {}, decode_status = {};

  void* stream() const { return buffer_of(in_bytes).place.stream; }
  // Addresses of pieces of `each` bytes.
  at::Tensor addresses(const at::Tensor& memory, std::size_t each) const {
    const auto first = reinterpret_cast<std::int64_t>(memory.data_ptr());
    return first + at::arange(std::int64_t(chunks), in_bytes.options()) * std::int64_t(each);
  }
  template <class T>
  static T* at(const at::Tensor& t) {
    return static_cast<T*>(t.data_ptr());
  }
};

Nvcomp::Nvcomp(const std::string& library, Coder coder, const at::Tensor& in, std::size_t chunk_bytes, double delta)
    : p_(new Parts{load(library, coder), compress_options(coder, delta), decompress_options(coder),
                   std::size_t(in.nbytes()) / chunk_bytes, chunk_bytes}) {
  Parts& p = *p_;
  if (p.chunks * p.chunk != std::size_t(in.nbytes())) throw Error(ExitCode::bug, "nvcomp", "chunks do not divide");
  const auto bytes = in.options().dtype(at::kByte), longs = in.options().dtype(at::kLong);
  p.in = in, p.back = at::empty_like(in);
  p.in_bytes = at::full({std::int64_t(p.chunks)}, std::int64_t(p.chunk), longs);
  p.out_bytes = at::zeros_like(p.in_bytes), p.back_bytes = at::zeros_like(p.in_bytes);
  p.status = at::full({std::int64_t(p.chunks)}, -1, in.options().dtype(at::kInt)), p.decode_status = p.status.clone();
  std::size_t most = 0, encode_temp = 0, decode_temp = 0;
  check(p.f.most(p.chunk, p.compress, &most), "CompressGetMaxOutputChunkSize");
  most = (most + 255) / 256 * 256;
  check(p.f.temp_size(p.chunks, p.chunk, p.compress, &encode_temp, in.nbytes(), p.stream()), "CompressGetTempSize");
  check(p.f.decode_temp_size(p.chunks, p.chunk, p.decompress, &decode_temp, in.nbytes(), p.stream()),
        "DecompressGetTempSize");
  p.temp_bytes = std::max(encode_temp, decode_temp);
  p.temp = at::empty({std::int64_t(p.temp_bytes + 256)}, bytes);
  p.out = at::empty({std::int64_t(most * p.chunks)}, bytes);
  p.in_at = p.addresses(p.in, p.chunk), p.back_at = p.addresses(p.back, p.chunk);
  p.out_at = p.addresses(p.out, most);
  encode();
}

Nvcomp::~Nvcomp() = default;

void Nvcomp::encode() {
  Parts& p = *p_;
  check(p.f.compress(p.at<const void*>(p.in_at), p.at<std::size_t>(p.in_bytes), p.chunk, p.chunks, p.temp.data_ptr(),
                     p.temp_bytes, p.at<void*>(p.out_at), p.at<std::size_t>(p.out_bytes), p.compress,
                     p.at<int>(p.status), p.stream()),
        "CompressAsync");
}

void Nvcomp::decode() {
  Parts& p = *p_;
  check(p.f.decompress(p.at<const void*>(p.out_at), p.at<std::size_t>(p.out_bytes), p.at<std::size_t>(p.in_bytes),
                       p.at<std::size_t>(p.back_bytes), p.chunks, p.temp.data_ptr(), p.temp_bytes,
                       p.at<void*>(p.back_at), p.decompress, p.at<int>(p.decode_status), p.stream()),
        "DecompressAsync");
}

const at::Tensor& Nvcomp::decoded() const { return p_->back; }
std::size_t Nvcomp::coded_bytes() const {
  return std::size_t(p_->out_bytes.sum().item<std::int64_t>()) + 8 * p_->chunks;
}
bool Nvcomp::good() const {
  return p_->status.abs().sum().item<std::int64_t>() == 0 && p_->decode_status.abs().sum().item<std::int64_t>() == 0 &&
         at::equal(p_->back_bytes, p_->in_bytes);
}

}  // namespace trireme::bench

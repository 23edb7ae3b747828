// The error-bounded codec on a GPU: range, quantisation and coding, and the way back, in GB/s of f32 values, beside a
// copy of as many values on the same card in the same run. Chunks are coded alone, each with its own range; no two are
// alike.
#include "bench/bench.h"
#include "bench/embedding_rows.h"
#include "comm/device.h"
#include "comm/error.h"
#include "compression/codecs/bounded.h"
#include "framework/base/quantile.h"
#include "framework/base/tensor.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace trireme::bench {
namespace {

struct Shape {
  std::size_t chunks, rows, dim;
};

double milliseconds(const std::function<void()>& f, int times) {
  c10::Event begin(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT), end(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
  const c10::Stream stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream({at::kCUDA, 0});
  begin.record(stream);
  for (int i = 0; i < times; ++i) f();
  end.record(stream);
  end.synchronize();
  return begin.elapsedTime(end) / times;
}

// Everything one shape needs, in device memory.
class Case {
 public:
  Case(const Shape& s, const std::string& codec, float rel) : shape_(s), codec_(options(codec)) {
    const auto values = embedding_rows(s.chunks, s.rows, s.dim, 1);
    in_ = at::from_blob(const_cast<float*>(values.data()), {std::int64_t(values.size())}, at::kFloat).to(at::kCUDA);
    back_ = at::empty_like(in_);
    const std::size_t each = s.rows * s.dim;
    for (std::size_t k = 0; k < s.chunks; ++k) {
      TableChunk c;
      c.rows = in_.const_data_ptr<float>() + k * each;
      c.n = s.rows, c.dim = s.dim, c.bound = rel, c.scope = std::uint32_t(k);
      chunks_.push_back(c);
    }
    out_ = bytes(s.chunks * codec_.max_bytes(s.rows, s.dim));
    sizes_ = at::empty({std::int64_t(s.chunks)}, in_.options().dtype(at::kLong));
    scratch_ = bytes(codec_.scratch_bytes(chunks_));
    status_ = at::empty({1}, in_.options().dtype(at::kInt));
    encode();
    const at::Tensor sizes = sizes_.cpu();
    for (std::size_t k = 0, at = 0; k < s.chunks; ++k) {
      const auto size = std::size_t(sizes.const_data_ptr<std::int64_t>()[k]);
      coded_.push_back({static_cast<const std::uint8_t*>(out_.data_ptr()) + at, size,
                        back_.data_ptr<float>() + k * each, s.rows, s.dim});
      at += size;
      coded_bytes_ = at;
    }
    decode_scratch_ = bytes(codec_.decode_scratch_bytes(coded_));
  }
  void encode() { codec_.encode(chunks_, buffer_of(out_), buffer_of(sizes_), buffer_of(scratch_)); }
  void decode() {
    codec_.decode(coded_, buffer_of(in_).place, reinterpret_cast<std::uint32_t*>(status_.data_ptr()),
                  buffer_of(decode_scratch_));
  }
  void copy() { back_.copy_(in_); }
  double input() const { return 4.0 * double(in_.numel()); }
  double ratio() const { return input() / double(coded_bytes_); }
  bool good() { return status_.item<int>() == 0; }

 private:
  static BoundedOptions options(const std::string& codec) {
    BoundedOptions o;
    o.codec = codec;
    return o;
  }
  at::Tensor bytes(std::size_t n) { return at::empty({std::int64_t(n)}, in_.options().dtype(at::kByte)); }

  Shape shape_;
  Bounded codec_;
  at::Tensor in_, back_, out_, sizes_, scratch_, decode_scratch_, status_;
  std::vector<TableChunk> chunks_;
  std::vector<CodedChunk> coded_;
  std::size_t coded_bytes_ = 0;
};

nlohmann::json run(const Options& o) {
  if (!device_runtime() || device_runtime()->count() == 0)
    throw UsageError("bench codec_kernels", "needs a GPU", "run it where `trireme doctor` names one");
  const float rel = o.problem.empty() ? 0.043f : std::stof(o.problem);
  nlohmann::json rows = nlohmann::json::array();
  for (const Shape& s : {Shape{128, 2048, 64}, Shape{26, 2048, 64}, Shape{26, 128, 32}, Shape{1024, 64, 64}})
    for (const char* codec : {"auto", "dedup_packed"}) {
      Case c(s, codec, rel);
      std::vector<std::pair<std::string, std::function<void()>>> arms = {
          {"copy", [&] { c.copy(); }}, {"encode", [&] { c.encode(); }}, {"decode", [&] { c.decode(); }}};
      std::vector<std::vector<double>> ms(arms.size());
      for (int block = -1; block < o.blocks; ++block)
        for (std::size_t a = 0; a < arms.size(); ++a)
          if (const double t = milliseconds(arms[a].second, 20); block >= 0) ms[a].push_back(t);
      if (!c.good()) throw Error(ExitCode::bug, "bench codec_kernels", "the decoder refused what the encoder made");
      for (std::size_t a = 0; a < arms.size(); ++a) {
        const double t = quantile(ms[a], 0.5);
        rows.push_back({{"arm", arms[a].first},
                        {"codec", codec},
                        {"rel_eb", rel},
                        {"chunks", s.chunks},
                        {"rows", s.rows},
                        {"dim", s.dim},
                        {"mib", c.input() / 1048576},
                        {"step_ms", t},
                        {"gb_s", c.input() / t / 1e6},
                        {"ratio", c.ratio()}});
      }
    }
  return rows;
}

const Benchmarks::Entry entry({"codec_kernels",
                               "the error-bounded codec on a GPU, beside a copy (--problem RELATIVE_BOUND)", run,
                               nullptr});

}  // namespace
}  // namespace trireme::bench

// The error-bounded codec on a GPU: range, quantisation and coding, and the way back, in GB/s of f32 values, beside a
// copy of as many values on the same card in the same run. Chunks are coded alone, each with its own range; no two are
// alike.
#include "bench/bench.h"
#include "bench/codec_case.h"
#include "bench/device_time.h"
#include "comm/device.h"
#include "comm/error.h"
#include "framework/base/quantile.h"

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

struct Shape {
  std::size_t chunks, rows, dim;
};

nlohmann::json run(const Options& o) {
  if (!device_runtime() || device_runtime()->count() == 0)
    throw UsageError("bench codec_kernels", "needs a GPU", "run it where `trireme doctor` names one");
  const float rel = o.problem.empty() ? 0.043f : std::stof(o.problem);
  nlohmann::json rows = nlohmann::json::array();
  for (const Shape& s : {Shape{128, 2048, 64}, Shape{26, 2048, 64}, Shape{26, 128, 32}, Shape{1024, 64, 64}})
    for (const char* codec : {"auto", "dedup_packed", "dedup_huffman", "huffman", "vector_lz"}) {
      BoundedOptions options;
      options.codec = codec;
      const at::Tensor in = rows_on_gpu(s.chunks, s.rows, s.dim), copy = at::empty_like(in);
      CodecCase c(in, options, rel);
      std::vector<std::pair<std::string, std::function<void()>>> arms = {
          {"copy", [&] { copy.copy_(in); }}, {"encode", [&] { c.encode(); }}, {"decode", [&] { c.decode(); }}};
      std::vector<std::vector<double>> ms(arms.size());
      for (int block = -1; block < o.blocks; ++block)
        for (std::size_t a = 0; a < arms.size(); ++a)
          if (const double t = device_ms(arms[a].second); block >= 0) ms[a].push_back(t);
      if (!c.good()) throw Error(ExitCode::bug, "bench codec_kernels", "the decoder refused what the encoder made");
      for (std::size_t a = 0; a < arms.size(); ++a) {
        const double t = quantile(ms[a], 0.5);
        rows.push_back({{"arm", arms[a].first},
                        {"codec", codec},
                        {"rel_eb", rel},
                        {"chunks", s.chunks},
                        {"rows", s.rows},
                        {"dim", s.dim},
                        {"mib", double(in.nbytes()) / 1048576},
                        {"step_ms", t},
                        {"gb_s", double(in.nbytes()) / t / 1e6},
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

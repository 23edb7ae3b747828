// The error-bounded codec on a GPU: range, quantisation and coding, and the way back, in GB/s of f32 values, beside a
// copy of as many values on the same card in the same run; each way also as a CUDA graph. Chunks are coded alone, each
// with its own range; no two are alike.
#include "bench/bench.h"
#include "bench/codec_case.h"
#include "bench/device_time.h"
#include "comm/error.h"

#include <cstdlib>
#include <iostream>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

struct Shape {
  std::size_t chunks, rows, dim;
};

nlohmann::json run(const Options& o) {
  need_gpu(o.name);
  const float rel = o.problem.empty() ? 0.043f : std::strtof(o.problem.c_str(), nullptr);
  if (!(rel > 0 && rel < 1))
    throw UsageError("--problem", "a relative bound above 0 and below 1", "say --problem 0.03");
  const auto comma = o.problem.find(',');
  std::vector<at::Tensor> inputs;
  if (comma != std::string::npos) inputs.push_back(rows_on_gpu(o.problem.substr(comma + 1), 2048, 64));
  for (const Shape& s : {Shape{128, 2048, 64}, Shape{26, 2048, 64}, Shape{26, 128, 32}, Shape{1024, 64, 64}})
    if (comma == std::string::npos) inputs.push_back(rows_on_gpu(s.chunks, s.rows, s.dim));
  const std::string of = comma == std::string::npos ? "drawn" : o.problem.substr(comma + 1);
  nlohmann::json rows = nlohmann::json::array();
  for (const at::Tensor& in : inputs) {
    const at::Tensor copy = at::empty_like(in);
    const auto bytes = double(in.nbytes());
    for (const char* codec : {"dedup_sparse", "auto", "dedup_packed", "fp8", "dedup_huffman", "huffman", "vector_lz"}) {
      BoundedOptions options;
      options.codec = codec;
      CodecCase c(in, options, rel);
      const RecordedCase graph(c);
      std::vector<DeviceArm> arms = {{"copy", bytes, [&] { copy.copy_(in); }},
                                     {"encode", bytes, [&] { c.encode(); }},
                                     {"decode", bytes, [&] { c.decode(); }},
                                     {"encode, graph", bytes, [&] { graph.encode->replay(); }},
                                     {"decode, graph", bytes, [&] { graph.decode->replay(); }}};
      take_turns(arms, o.blocks);
      if (!c.good()) throw Error(ExitCode::bug, "bench codec_kernels", "the decoder refused what the encoder made");
      for (const auto& arm : arms) {
        rows.push_back({{"arm", arm.name},
                        {"of", of},
                        {"codec", codec},
                        {"rel_eb", rel},
                        {"chunks", in.size(0)},
                        {"rows", in.size(1)},
                        {"dim", in.size(2)},
                        {"mib", bytes / 1048576},
                        {"step_ms", arm.median()},
                        {"gb_s", arm.gb_s()},
                        {"ratio", c.ratio()},
                        {"encode_nodes", graph.encode_nodes},
                        {"decode_nodes", graph.decode_nodes}});
        std::cerr << rows.back().dump() << std::endl;  // what is measured stays, however the rest ends
      }
    }
  }
  return rows;
}

const Benchmarks::Entry entry(
    {"codec_kernels",
     "the error-bounded codec on a GPU, beside a copy (--problem RELATIVE_BOUND[,FOLDER of a trained table's rows])",
     run, nullptr});

}  // namespace
}  // namespace trireme::bench

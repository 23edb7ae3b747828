// The error-bounded codec on a GPU beside nvCOMP's ANS and Bitcomp and fp8 with a scale a row: ratio, GB/s of f32
// values, largest error. ANS is lossless: "ans" codes what is already quantised, "quantise + ans" begins with values;
// nvCOMPDx's is fused with the quantiser.
#include "bench/bench.h"
#include "bench/codec_case.h"
#include "bench/device_time.h"
#include "bench/nvcomp.h"
#include "bench/nvcompdx.h"
#include "bench/quantize_pass.h"
#include "comm/error.h"
#include "framework/base/quantile.h"
#include "framework/base/tensor.h"

#include <iostream>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

constexpr std::int64_t rows = 2048, dim = 64;

struct CodecArm {
  std::string name;
  std::function<void()> encode, decode;
  double ratio = 0, error = 0;
  std::vector<double> encode_ms = {}, decode_ms = {};
};

double largest_error(const at::Tensor& in, const at::Tensor& back) {
  return (in - back.view_as(in)).abs().max().item<double>();
}

void add_ours(std::vector<CodecArm>& arms, const at::Tensor& in, const std::string& codec, float bound, bool relative,
              const std::string& name) {
  BoundedOptions o;
  o.codec = codec;
  o.relative = relative;
  const auto one = std::make_shared<CodecCase>(in, o, bound);
  one->decode();
  if (!one->good()) throw Error(ExitCode::bug, "bench codec_peers", "the decoder refused what the encoder made");
  const double error = largest_error(in, one->decoded());
  const auto graph = std::make_shared<RecordedCase>(*one);
  arms.push_back({name, [one] { one->encode(); }, [one] { one->decode(); }, one->ratio(), error});
  arms.push_back({name + ", graph", [one, graph] { graph->encode->replay(); },
                  [one, graph] { graph->decode->replay(); }, one->ratio(), error});
}

void add_ans(std::vector<CodecArm>& arms, const at::Tensor& in, const std::string& library, float bound, int kib) {
  const auto chunks = std::size_t(in.size(0));
  const at::Tensor codes = at::empty(in.sizes(), in.options().dtype(at::kChar)), back = at::empty_like(in),
                   steps = at::empty({in.size(0)}, in.options()),
                   partial = at::empty({in.size(0) * 2 * quantize_parts}, in.options());
  const QuantizePass pass{in.const_data_ptr<float>(),    chunks,
                          std::size_t(rows * dim),       bound,
                          codes.data_ptr<std::int8_t>(), steps.data_ptr<float>(),
                          partial.data_ptr<float>()};
  const Place place = buffer_of(in).place;
  quantize_pass(pass, place);
  const auto ans = std::make_shared<Nvcomp>(library, Nvcomp::Coder::ans, codes, std::size_t(kib) << 10);
  const DequantizePass widen{ans->decoded().const_data_ptr<std::int8_t>(), chunks, std::size_t(rows * dim),
                             steps.const_data_ptr<float>(), back.data_ptr<float>()};
  const auto decode = [=] {  // the tensors live in it
    ans->decode();
    dequantize_pass(widen, place);
    (void)back, (void)steps;
  };
  const auto encode = [=] {
    quantize_pass(pass, place);
    ans->encode();
    (void)codes, (void)partial, (void)in;
  };
  decode();
  if (!ans->good()) throw Error(ExitCode::bug, "bench codec_peers", "nvCOMP refused what it made");
  const double ratio = double(in.nbytes()) / double(ans->coded_bytes() + 4 * chunks), error = largest_error(in, back);
  const std::string name = "ans, chunks of " + std::to_string(kib) + " KiB";
  arms.push_back({name, [=] { ans->encode(); }, [=] { ans->decode(); }, ratio, error});
  arms.push_back({"quantise + " + name, encode, decode, ratio, error});
}

// And ours at the error that it reached.
void add_bitcomp(std::vector<CodecArm>& arms, const at::Tensor& in, const std::string& library, float bound) {
  const double delta = 2.0 * bound * (in.max() - in.min()).item<double>();
  double error = 0;
  for (const int kib : {64, 256}) {
    const auto one = std::make_shared<Nvcomp>(library, Nvcomp::Coder::bitcomp_lossy, in, std::size_t(kib) << 10, delta);
    one->decode();
    if (!one->good()) throw Error(ExitCode::bug, "bench codec_peers", "nvCOMP refused what it made");
    error = largest_error(in, one->decoded());
    arms.push_back({"bitcomp lossy, chunks of " + std::to_string(kib) + " KiB", [one] { one->encode(); },
                    [one] { one->decode(); }, double(in.nbytes()) / double(one->coded_bytes()), error});
  }
  add_ours(arms, in, "auto", float(error), false, "trireme auto, error of bitcomp");
}

void add_fused(std::vector<CodecArm>& arms, const at::Tensor& in, const std::string& library, float bound) {
  for (const auto& one : Nvcompdx::all(library, in, bound))
    arms.push_back({one->name(), [one] { one->encode(); }, [one] { one->decode(); },
                    double(in.nbytes()) / double(one->coded_bytes()), largest_error(in, one->decoded())});
}

// libraries: nvCOMP's, and after a comma that of nvCOMPDx's arm, if any.
nlohmann::json measure(const at::Tensor& in, const std::string& of, const std::string& libraries, int blocks) {
  const float bound = 0.043f;
  const at::Tensor copy = at::empty_like(in);
  const auto comma = libraries.find(',');
  const std::string library = libraries.substr(0, comma);
  std::vector<CodecArm> arms;
  arms.push_back({"copy", [&] { copy.copy_(in); }, [&] { copy.copy_(in); }, 1, 0});
  for (const char* codec : {"dedup_sparse", "auto", "dedup_packed", "packed", "fp8"})
    add_ours(arms, in, codec, bound, true, std::string("trireme ") + codec);
  for (const int kib : {64, 128, 256}) add_ans(arms, in, library, bound, kib);
  add_bitcomp(arms, in, library, bound);
  if (comma != std::string::npos) add_fused(arms, in, libraries.substr(comma + 1), bound);
  for (int block = -1; block < blocks; ++block)
    for (auto& arm : arms) {
      const double encode = device_ms(arm.encode), decode = device_ms(arm.decode);
      if (block >= 0) arm.encode_ms.push_back(encode), arm.decode_ms.push_back(decode);
    }
  nlohmann::json table = nlohmann::json::array();
  for (const auto& arm : arms) {
    table.push_back({{"problem", std::to_string(in.nbytes() >> 20) + " MiB"},
                     {"arm", arm.name},
                     {"of", of},
                     {"ratio", arm.ratio},
                     {"max_error", arm.error},
                     {"encode_gb_s", double(in.nbytes()) / quantile(arm.encode_ms, 0.5) / 1e6},
                     {"decode_gb_s", double(in.nbytes()) / quantile(arm.decode_ms, 0.5) / 1e6}});
    std::cerr << table.back().dump() << std::endl;  // 64 MiB stay, however 512 end
  }
  return table;
}

nlohmann::json run(const Options& o) {
  need_gpu(o.name);
  if (o.problem.empty())
    throw UsageError("bench codec_peers", "which nvCOMP?",
                     "say --problem 'PATH[,PATH][ rows=FOLDER]': libnvcomp.so.6, what bench/peers/nvcompdx builds, "
                     "a trained table's rows (docs/codecs.md)");
  nlohmann::json all = nlohmann::json::array();
  const auto given = o.problem.find(" rows=");
  const std::string libraries = o.problem.substr(0, given);
  const std::string of = given == std::string::npos ? "drawn" : o.problem.substr(given + 6);
  std::vector<at::Tensor> inputs;
  if (given != std::string::npos) inputs.push_back(rows_on_gpu(o.problem.substr(given + 6), rows, dim));
  for (const std::size_t mib : {64, 512})
    if (given == std::string::npos) inputs.push_back(rows_on_gpu((mib << 18) / (rows * dim), rows, dim));
  for (const at::Tensor& in : inputs)
    for (auto& row : measure(in, of, libraries, o.blocks)) all.push_back(row);
  return all;
}

const Benchmarks::Entry entry({"codec_peers",
                               "the error-bounded codec on a GPU beside nvCOMP (--problem PATH of libnvcomp.so.6)", run,
                               nullptr});

}  // namespace
}  // namespace trireme::bench

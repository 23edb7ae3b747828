// Kernels of gradient hooks on a GPU: GB/s of the fewest bytes that each has to move, and their share of the rate at
// which the same card copies as many values in the same run. One process, no ranks.
#include "bench/bench.h"
#include "bench/device_time.h"
#include "comm/device.h"
#include "comm/error.h"
#include "comm/local/self.h"
#include "compression/compressor.h"
#include "framework/base/quantile.h"
#include "framework/base/tensor.h"
#include "framework/gradients/hook.h"
#include "framework/kernels/top_k.h"
#include "framework/placement.h"

#include <cstdlib>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

constexpr double density = 0.01;

struct Measured {
  std::string name;
  double bytes;  // the fewest
  std::function<void()> run;
  std::vector<double> ms = {};
};

// What the kernels work on: values and errors, at random, and room for codes.
struct Memory {
  at::Tensor values, before, error, code, scratch;

  explicit Memory(std::int64_t n) {
    values = at::randn({n}, at::TensorOptions().dtype(at::kFloat).device(at::kCUDA));
    before = at::randn({n}, values.options()) * 1e-3;
    error = at::empty_like(values);
    code = at::empty({4 * n}, values.options().dtype(at::kByte));
    scratch = at::empty({std::int64_t(kernels::top_k_scratch(n))}, code.options());
  }
};

void add_codec(std::vector<Measured>& all, const Memory& m, const std::string& name, bool feedback) {
  const std::shared_ptr<Compressor> codec = Compressors::create(name, "bench");
  const auto n = std::size_t(m.values.numel());
  const std::size_t bytes = codec->max_bytes(n);
  const Buffer code{m.code.data_ptr(), bytes, DType::u8, buffer_of(m.code).place};
  Chunk chunk{buffer_of(m.values)};
  if (feedback) chunk.error = m.error.data_ptr<float>(), chunk.error_before = m.before.const_data_ptr<float>();
  const double encoded = double(n) * (feedback ? 12 : 4) + double(bytes);
  all.push_back({name + (feedback ? " encode, error feedback" : " encode"), encoded, [codec, chunk, code] {
                   std::uint64_t size = 0;
                   codec->encode({&chunk, 1}, code, {&size, 1, DType::i64});
                 }});
  all.push_back({name + " decode", double(n) * 4 + double(bytes), [codec, code, bytes, out = buffer_of(m.error)] {
                   const std::uint64_t size = bytes;
                   codec->decode(code, {&size, 1}, {&out, 1});
                 }});
}

void add_top_k(std::vector<Measured>& all, const Memory& m) {
  const std::int64_t n = m.values.numel(), keep = std::int64_t(double(n) * density);
  kernels::TopKJob job;
  job.in = m.values.const_data_ptr<float>();
  job.before = m.before.const_data_ptr<float>();
  job.rest = m.error.data_ptr<float>();
  job.count = n;
  job.keep = keep;
  job.index = static_cast<std::int32_t*>(m.code.data_ptr());
  job.value = reinterpret_cast<float*>(job.index + keep);
  job.scratch = m.scratch.data_ptr();
  all.push_back({"top_k select, density 0.01", double(n) * 12 + double(keep) * 8,
                 [job, place = buffer_of(m.values).place] { kernels::top_k(job, place); }});
}

// All of a step but what travels, on matrices of 1024 x 4096. The fewest bytes a value: gradient and error in, M out
// (12); M for Q (4); M in, error and sum out (12).
struct PowerSgd {
  std::unique_ptr<Communicator> comm = for_device(make_self(), {at::Device(at::kCUDA, 0), /*nccl=*/true}, {});
  Bucket bucket;
  std::unique_ptr<GradientHook> hook;
  std::vector<Work> works;

  PowerSgd(std::int64_t n, std::int64_t rank) {
    bucket.flat = at::randn({n}, at::TensorOptions().dtype(at::kFloat).device(at::kCUDA));
    for (const at::Tensor& one : bucket.flat.view({-1, 1024, 4096}).unbind()) {
      bucket.gradients.push_back(one);
      bucket.parameters.push_back(std::to_string(bucket.parameters.size()));
    }
    HookConfig config;
    config.name = "powersgd";
    config.rank = rank;
    hook = make_hook(config, bucket, *comm);
  }
  void run() {
    works.clear();
    Communicator* const lanes[] = {comm.get()};
    hook->reduce(bucket, lanes, works);
    for (auto& work : works) work.wait();
  }
};

void add_power_sgd(std::vector<Measured>& all, std::int64_t n, std::int64_t rank) {
  const auto one = std::make_shared<PowerSgd>(n, rank);
  all.push_back({"powersgd, rank " + std::to_string(rank), double(n) * 28, [one] { one->run(); }});
}

nlohmann::json run(const Options& o) {
  if (!device_runtime() || device_runtime()->count() == 0)
    throw UsageError("bench hook_kernels", "needs a GPU", "run it where `trireme doctor` names one");
  const std::int64_t mib = o.problem.empty() ? 64 : std::atoll(o.problem.c_str());
  if (mib < 16 || mib % 16 != 0) throw UsageError("--problem", "MiB of values in multiples of 16", "say --problem 64");
  const Memory m(mib << 18);
  std::vector<Measured> all;
  all.push_back({"copy", double(m.values.numel()) * 8, [&m] { m.error.copy_(m.values); }});
  add_codec(all, m, "bf16", false);
  add_codec(all, m, "fp16", false);
  for (const char* name : {"int8", "fp8", "int4"}) add_codec(all, m, name, true);
  add_top_k(all, m);
  for (const std::int64_t rank : {4, 32}) add_power_sgd(all, m.values.numel(), rank);
  for (int block = -1; block < o.blocks; ++block)
    for (auto& one : all)
      if (const double ms = device_ms(one.run); block >= 0) one.ms.push_back(ms);
  nlohmann::json rows = nlohmann::json::array();
  double copy = 0;
  for (const auto& one : all) {
    const double ms = quantile(one.ms, 0.5), rate = one.bytes / ms / 1e6;
    if (copy == 0) copy = rate;
    rows.push_back({{"arm", one.name}, {"mib", mib}, {"step_ms", ms}, {"gb_s", rate}, {"share_of_copy", rate / copy}});
  }
  return rows;
}

const Benchmarks::Entry entry({"hook_kernels",
                               "kernels of gradient hooks on a GPU against its copy rate (--problem MiB of values)",
                               run, nullptr});

}  // namespace
}  // namespace trireme::bench

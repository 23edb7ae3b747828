// Gradient hooks on a GPU: kernels against their host twins, hooks over NCCL against the same hooks on host memory, and
// steps in which the host waits for nothing. (Codecs alone: tests/contract/compressor_test.cpp.)
#include "comm/backends.h"
#include "comm/cuda/nccl.h"
#include "comm/cuda/runtime.h"
#include "compression/compressor.h"
#include "data/loader.h"
#include "framework/base/tensor.h"
#include "framework/config/config.h"
#include "framework/io/checkpoint.h"
#include "framework/kernels/adamw.h"
#include "framework/kernels/copy_if.h"
#include "framework/kernels/orthonormal.h"
#include "framework/kernels/top_k.h"
#include "framework/session.h"
#include "tests/max_difference.h"
#include "tests/mpi_harness.h"
#include "tests/unit/hook_buckets.h"
#include "tests/unit/low_rank_case.h"

#include <future>
#include <tuple>

#include <c10/cuda/CUDAFunctions.h>

namespace trireme::test {
namespace {

const std::vector<std::string> names = {"bf16",    "fp16",         "int8",  "fp8",     "int4",
                                        "bounded", "fixed_length", "top_k", "powersgd"};

// Its bytes depend on the values, and the host waits for sizes: sized_hook.h.
bool is_sized(const std::string& name) { return name == "bounded" || name == "fixed_length"; }

class HostOnly final : public Compressor {
 public:
  std::size_t max_bytes(std::size_t) const override { return 0; }
  void encode(std::span<const Chunk>, Buffer, Buffer) override {}
  void decode(ConstBuffer, std::span<const std::uint64_t>, std::span<const Buffer>) const override {}
};
const Compressors::Entry host_only("host_only", [] { return std::make_unique<HostOnly>(); });

bool no_gpu() { return !device_runtime() || device_runtime()->count() == 0; }
std::string no_nccl(int ranks) {
  for (const auto& entry : Communicators::values())
    if (entry.name == "nccl" && entry.missing) return entry.missing(ranks);
  return "built without CUDA";
}

at::Device pick_device(const Communicator& world) {
  const int device = world.rank() % device_runtime()->count();
  c10::cuda::set_device(c10::DeviceIndex(device));
  return {at::kCUDA, c10::DeviceIndex(device)};
}

at::Tensor random(std::int64_t n, std::uint64_t seed) {
  at::Tensor t = at::empty({n}, at::kFloat);
  Rng rng(seed, "values", std::uint64_t(n));
  for (std::int64_t i = 0; i < n; ++i) t.data_ptr<float>()[i] = float(rng.normal());
  return t;
}

// Elements that differ in a bit; one NaN is as good as another. Compared on the GPU: its host may be slow.
std::int64_t different(const at::Tensor& wanted, const at::Tensor& device) {
  const at::Tensor w = wanted.to(device.device());
  const at::Tensor same = w.view(at::kInt).eq(device.view(at::kInt)).logical_or(w.isnan().logical_and(device.isnan()));
  return same.logical_not().sum().item<std::int64_t>();
}

struct Selected {
  at::Tensor rest, index, value;
};
Selected select(const at::Tensor& in, const at::Tensor& before, std::int64_t keep, bool forget) {
  const std::int64_t n = in.numel();
  Selected s{at::empty_like(in), at::empty({keep}, in.options().dtype(at::kInt)), at::empty({keep}, in.options())};
  const at::Tensor scratch = at::empty({std::int64_t(kernels::top_k_scratch(n))}, in.options().dtype(at::kByte));
  kernels::top_k({in.const_data_ptr<float>(), before.const_data_ptr<float>(), s.rest.data_ptr<float>(), n, keep, forget,
                  s.index.data_ptr<std::int32_t>(), s.value.data_ptr<float>(), scratch.data_ptr()},
                 buffer_of(in).place);
  return s;
}

TEST(CudaHooks, TopKEqualsItsTwin) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (const std::int64_t n : {1, 31, 33, 4096, 4097, 1000007, 9000001}) {
    const at::Tensor one = random(n, 1), two = random(n, 2);
    for (const int kind : {0, 1, 2, 3, 4}) {
      at::Tensor in = one.clone(), before = two.clone();
      if (kind == 1) in = (in * 2).trunc(), before = (before * 2).trunc();  // many are equal
      if (kind == 2) in.zero_(), before.zero_();
      if (kind == 3) in *= 1e-41, before *= 1e-41;
      if (kind == 4)
        for (std::int64_t i = 0; i < n; i += 7) in.data_ptr<float>()[i] = i % 2 ? INFINITY : std::nanf("");
      const at::Tensor in_there = in.cuda(), before_there = before.cuda();
      // The host's twins at once, a thread each.
      std::vector<std::tuple<std::int64_t, bool, std::future<Selected>>> wanted;
      for (const std::int64_t keep : {std::int64_t(1), (n + 99) / 100, (n + 2) / 3, n})
        for (const bool forget : {false, true})
          wanted.emplace_back(keep, forget, std::async(std::launch::async, select, in, before, keep, forget));
      for (auto& [keep, forget, twin] : wanted) {
        const Selected a = twin.get(), b = select(in_there, before_there, keep, forget);
        SCOPED_TRACE(std::to_string(keep) + " of " + std::to_string(n) + ", kind " + std::to_string(kind));
        EXPECT_TRUE(at::equal(a.index, b.index.cpu()));
        EXPECT_EQ(different(a.value, b.value), 0);
        EXPECT_EQ(different(a.rest, b.rest), 0);
      }
    }
  }
  at::Tensor out = at::zeros({100}, at::kFloat).cuda();
  const at::Tensor index = at::arange(0, 200, 2, at::kInt).cuda(), value = at::ones({100}, at::kFloat).cuda();
  kernels::add_at({index.data_ptr<std::int32_t>(), value.data_ptr<float>(), 100, out.data_ptr<float>(), 100},
                  buffer_of(out).place);
  EXPECT_TRUE(std::isnan(out[0].item<float>())) << "indices outside";
  EXPECT_EQ(out.narrow(0, 1, 99).sum().item<float>(), 49);
}

TEST(CudaHooks, CopiesIfTheFlagSaysSo) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (const std::int64_t n : {1, 33, 1000007})
    for (const float flag : {0.0f, 1.0f}) {
      const at::Tensor from = random(n, 1), to = random(n, 2);
      const at::Tensor there = to.cuda(), zeroed = to.cuda(), skip = at::scalar_tensor(flag, at::kFloat).cuda();
      take_back(skip, there, from.cuda());
      take_back(skip, zeroed, {});
      EXPECT_TRUE(at::equal(there.cpu(), flag == 0 ? to : from));
      EXPECT_TRUE(at::equal(zeroed.cpu(), flag == 0 ? to : at::zeros_like(to)));
    }
}

// 120 tensors are two launches; some lie off 16 bytes; one fills chunks and one is a tail alone.
TEST(CudaAdamW, EqualsItsTwin) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (const float skip : {0.0f, 1.0f}) {
    std::vector<at::Tensor> host[4], there[4];
    for (int k = 0; k < 120; ++k) {
      const std::int64_t n = k == 0 ? 5000011 : k == 1 ? 2048 * 37 : 1 + 97 * k, shift = k % 3;
      for (int which = 0; which < 4; ++which) {
        const at::Tensor x = random(n + shift, std::uint64_t(4 * k + which));
        host[which].push_back((which == 3 ? x.abs() : x).narrow(0, shift, n).contiguous());
        there[which].push_back((which == 3 ? x.abs() : x).cuda().narrow(0, shift, n));
      }
    }
    const auto update = [&](std::vector<at::Tensor>(&t)[4], at::Device device) {
      const auto scalar = [&](float v) { return at::scalar_tensor(v, at::TensorOptions(device).dtype(at::kFloat)); };
      const at::Tensor count = scalar(7), lr = scalar(0.003f), scale = scalar(3), flag = scalar(skip);
      std::vector<kernels::AdamWTensor> tensors;
      for (std::size_t k = 0; k < t[0].size(); ++k)
        tensors.push_back({t[0][k].data_ptr<float>(), t[1][k].data_ptr<float>(), t[2][k].data_ptr<float>(),
                           t[3][k].data_ptr<float>(), t[0][k].numel()});
      kernels::adamw({tensors.data(), std::ssize(tensors), count.const_data_ptr<float>(), lr.const_data_ptr<float>(),
                      scale.const_data_ptr<float>(), flag.const_data_ptr<float>(), 0, 0.9, 0.98, 1e-6, 0.1},
                     buffer_of(t[0][0]).place);
    };
    update(host, at::kCPU);
    update(there, at::kCUDA);
    for (int which = 0; which < 4; ++which)
      for (std::size_t k = 0; k < host[which].size(); ++k)
        EXPECT_EQ(different(host[which][k], there[which][k]), 0) << which << " of tensor " << k;
  }
}

TEST(CudaHooks, RowsAreOrthonormal) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (const std::int64_t r : {1, 4, 32, 33, 70})
    for (const std::int64_t m : {77, 768, 50007}) {
      const at::Tensor rows = random(r * m, 5).view({r, m}), start = random(r * m, 6).view({r, m});
      if (r == 4) rows[3].copy_(rows[0] * 2 - rows[1]);  // depends on others: becomes zero
      const at::Tensor there = rows.cuda(), start_there = start.cuda(), lost = at::zeros({1}, there.options());
      const auto table = [&](const at::Tensor& t, const at::Tensor& s) {
        const kernels::RowMatrix one{t.data_ptr<float>(), s.data_ptr<float>(), r, m};
        return at::from_blob(const_cast<kernels::RowMatrix*>(&one), {sizeof one}, at::kByte).clone().to(t.device());
      };
      const auto of = [](const at::Tensor& t) { return static_cast<const kernels::RowMatrix*>(t.const_data_ptr()); };
      const at::Tensor here_table = table(rows, start), there_table = table(there, start_there);
      const Place place = buffer_of(there).place;
      float lost_here = 0;
      const at::Tensor scratch = at::empty({kernels::orthonormal_scratch(1, r)}, there.options().dtype(at::kDouble));
      kernels::orthonormalize({of(here_table), 1, r}, {});
      kernels::orthonormalize({of(there_table), 1, r, scratch.data_ptr<double>()}, place);
      EXPECT_LE((there.cpu() - rows).abs().max().item<float>(), 1e-5 * rows.abs().max().item<float>()) << r << " " << m;
      kernels::restart_rows({of(here_table), 1, &lost_here}, {});
      kernels::restart_rows({of(there_table), 1, lost.data_ptr<float>()}, place);
      EXPECT_LE((there.cpu() - rows).abs().max().item<float>(), 1e-5 * rows.abs().max().item<float>()) << r << " " << m;
      EXPECT_EQ(lost.item<float>(), lost_here);
    }
}

// Whole tiles, edges, rows off 16 bytes, and ranks in one piece and in several; the same bits in a second run.
TEST(CudaHooks, LowRankKernelsEqualF64) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const std::vector<std::pair<std::int64_t, std::int64_t>> shapes = {{1024, 4096}, {300, 516}, {33, 71}, {1, 9},
                                                                     {130, 260},   {5, 1027},  {64, 256}};
  for (const std::int64_t rank : {1, 3, 4, 8, 16, 32, 33, 64, 70})
    for (const bool feedback : {true, false})
      for (const std::int64_t shift : {0, 1}) {
        SCOPED_TRACE("rank " + std::to_string(rank) + (feedback ? ", feedback" : "") + ", " + std::to_string(shift));
        LowRankCase one(shapes, rank, feedback, shift, at::kCUDA), again(shapes, rank, feedback, shift, at::kCUDA);
        EXPECT_LE(one.worst(), 1e-5);
        again.worst();
        for (const auto& [a, b] : {std::pair{one.p, again.p}, {one.own_q, again.own_q}, {one.error, again.error}})
          EXPECT_EQ(different(a, b), 0);
      }
}

Snapshot kept_by(GradientHook& hook, int rank) {
  return Snapshot::take([&](Archive& ar) { hook.state(ar, Sharing::replicated); }, rank);
}

// What hooks keep, by name: the owner's errors are laid out in another way on a host.
void expect_same_state(const Snapshot& host, const Snapshot& device, const std::string& name) {
  for (const auto& [key, entry] : host.entries) {
    if (key.starts_with("owned")) continue;
    ASSERT_TRUE(device.entries.contains(key)) << name << " " << key;
    const auto& a = entry.bytes;
    const auto& b = device.entries.at(key).bytes;
    ASSERT_EQ(a.size(), b.size());
    const auto* x = reinterpret_cast<const float*>(a.data());
    const auto* y = reinterpret_cast<const float*>(b.data());
    double worst = 0, largest = 0;
    for (std::size_t i = 0; i < a.size() / 4; ++i)
      worst = nan_max(worst, std::abs(x[i] - y[i])), largest = nan_max(largest, std::abs(x[i]));
    EXPECT_LE(worst, name == "powersgd" ? 1e-5 * largest : 0) << name << " " << key;
  }
}

// Steps with error feedback, one of them not finite and taken back, on host memory over MPI and on the GPU over NCCL.
void equal_the_host(Communicator& world) {
  const at::Device device = pick_device(world);
  const auto nccl = make_nccl(world.split(0, world.rank()), device.index());
  const auto host = world.split(0, world.rank());
  for (const auto& name : names)
    for (const bool feedback : {true, false}) {
      HookConfig config;
      config.name = name;
      config.density = 0.1;
      config.rank = 2;
      config.bound = 1e-2;
      config.error_feedback = feedback;
      OneBucket here(world.size()), there(world.size(), device);
      const auto a = make_hook(config, here.bucket, *host), b = make_hook(config, there.bucket, *nccl);
      for (std::uint64_t step = 0; step < 8; ++step) {
        here.bucket.flat.zero_(), there.bucket.flat.zero_();
        here.fill(100 * step + std::uint64_t(world.rank()));
        const bool bad = step == 3;
        if (bad && world.rank() == 1) here.bucket.gradients[0][3][4] = INFINITY;
        there.bucket.flat.copy_(here.bucket.flat);
        reduce(*a, here.bucket, *host);
        reduce(*b, there.bucket, *nccl);
        a->undo(at::full({}, bad ? 1.0f : 0.0f));
        b->undo(at::full({}, bad ? 1.0f : 0.0f, there.bucket.flat.options()));
        const float unit = step == 5 ? 0.5f : 1.0f;
        a->rescale(at::full({}, unit));
        b->rescale(at::full({}, unit, there.bucket.flat.options()));
        const at::Tensor found = there.bucket.flat.cpu();
        SCOPED_TRACE(name + (feedback ? ", feedback" : "") + ", step " + std::to_string(step));
        if (bad) {
          EXPECT_FALSE(std::isfinite(found.sum().item<float>()));
          continue;
        }
        const double worst = ((found - here.bucket.flat).abs().max() / here.bucket.flat.abs().max()).item<double>();
        // NCCL rounds 16-bit sums at every hop: of two ranks as the host does.
        const double bf16 = world.size() == 2 ? 0 : world.size() * 0.004;
        EXPECT_LE(worst, name == "powersgd" ? 1e-5 : name == "bf16" || name == "fp16" ? bf16 : 0);
      }
      expect_same_state(kept_by(*a, world.rank()), kept_by(*b, world.rank()), name);
      if (is_sized(name)) continue;
      EXPECT_EQ(a->bytes(here.bucket, *host), b->bytes(there.bucket, *nccl)) << name;
    }
  HookConfig refused;
  refused.name = "host_only";
  OneBucket there(world.size(), device);
  EXPECT_THROW(make_hook(refused, there.bucket, *nccl), UsageError);
}

TEST(CudaHooks, OverNcclEqualTheHost) {
  if (!is_rank() && !no_nccl(2).empty()) GTEST_SKIP() << no_nccl(2);
  run_mpi_test(no_nccl(4).empty() ? std::vector{2, 4} : std::vector{2}, equal_the_host);
}

// As sync_cuda_test's, on two ranks. A bucket of several parameters each, so that hooks overlap with backward.
void steps_without_waiting(Communicator& world) {
  pick_device(world);
  for (const auto& name : names) {
    if (is_sized(name)) continue;
    Config config =
        Config::parse("recipe: mlp\nbatch_size: 64\ndevice: cuda\nsizes: [32, 64, 64, 10]\nsamples: 2000\n", "run.yaml",
                      {"precision=f32", "log_every=1000", "steps=1000", "communicator=nccl", "bucket_mib=0.01",
                       "first_bucket_mib=0.01", "hook.name=" + name});
    TrainConfig train;
    auto recipe = Recipes::create(config.string_at("recipe"), config.place("recipe"));
    config.read([&](Fields& f) {
      train.fields(f);
      recipe->fields(f);
    });
    Session session(world, train, *recipe);
    Loader loader(recipe->train_data(), recipe->train_ids(), train.batch_size, world.rank(), world.size(), 1);
    const auto step = [&](std::int64_t k) {
      session.context().now.step = k;
      const Batch batch = loader.next();
      session.context().now.epoch = batch.epoch;
      session.step(batch);
    };
    for (std::int64_t k = 0; k < 4; ++k) step(k);  // libraries start, the bucket order is adopted, hooks begin
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_ERROR);
    std::string waited;
    for (std::int64_t k = 4; k < 9 && waited.empty(); ++k) try {
        step(k);
      } catch (const std::exception& e) {
        waited = e.what();
      }
    c10::cuda::warning_state().set_sync_debug_mode(c10::cuda::SyncDebugMode::L_DISABLED);
    EXPECT_EQ(waited, "") << name;
    EXPECT_TRUE(std::isfinite(session.loss())) << name;
    EXPECT_FALSE(session.skipped()) << name;
  }
}

TEST(CudaHooks, NeverWait) {
  if (!is_rank() && !no_nccl(2).empty()) GTEST_SKIP() << no_nccl(2);
  run_mpi_test({2}, steps_without_waiting);
}

}  // namespace
}  // namespace trireme::test

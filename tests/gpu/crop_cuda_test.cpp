// The crop's CUDA twin against the host's, bit by bit; and the way of batches to a GPU.
#include "comm/device.h"
#include "data/image_text/crop.h"
#include "data/image_text/view.h"
#include "data/staging.h"

#include <cstring>
#include <optional>
#include <vector>

#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>
#include <gtest/gtest.h>

namespace {

using namespace trireme;

// Rows of random regions and boxes, among them single pixels, upscaling and the largest reduction.
struct Made {
  at::Tensor bytes, crops;
};

Made make(std::int64_t rows, int size, std::uint64_t seed) {
  Rng rng(seed, "test");
  std::vector<Crop> crops;
  std::int64_t stride = 16;
  for (std::int64_t i = 0; i < rows; ++i) {
    const int most = most_reduction * size;
    Crop c{1 + int(rng.below(std::uint64_t(most))), 1 + int(rng.below(std::uint64_t(most))), int(rng.below(2))};
    c.pitch = 3 * c.width;
    c.left = i % 4 ? 0.9 * c.width * rng.uniform() : 0, c.top = i % 4 ? 0.9 * c.height * rng.uniform() : 0;
    c.box_width = (c.width - c.left) * (i % 4 ? 0.01 + 0.99 * rng.uniform() : 1);
    c.box_height = (c.height - c.top) * (i % 4 ? 0.01 + 0.99 * rng.uniform() : 1);
    c.down_first = int(rng.below(2));
    if (i == 0) c = {most, most, 0, 3 * most, 0, 0, double(most), double(most)};
    if (i == 1) c = {1, 1, 1, 3, 0, 0, 1, 1};
    if (i == 2) c = {most, most, 1, 3 * most, 0, 0, double(most), double(most), 1};
    crops.push_back(c);
    stride = std::max<std::int64_t>(stride, std::int64_t(c.pitch) * c.height);
  }
  Made m{at::empty({rows, stride}, at::kByte), at::empty({rows, std::int64_t(sizeof(Crop))}, at::kByte)};
  auto* p = m.bytes.data_ptr<std::uint8_t>();
  for (std::int64_t i = 0; i < rows * stride; ++i) p[i] = std::uint8_t(rng.u32());
  std::memcpy(m.crops.data_ptr(), crops.data(), crops.size() * sizeof(Crop));
  return m;
}

at::Tensor run(const Made& m, int size, at::ScalarType type, DType dtype) {
  const at::Tensor out = at::empty({m.bytes.size(0), 3, size, size}, m.bytes.options().dtype(type));
  crop_resize({m.bytes.const_data_ptr<std::uint8_t>(),
               m.bytes.stride(0),
               reinterpret_cast<const Crop*>(m.crops.const_data_ptr<std::uint8_t>()),
               m.bytes.size(0),
               size,
               {},
               dtype,
               out.data_ptr()},
              m.bytes.is_cuda() ? current_place(int(m.bytes.get_device())) : Place{});
  return out;
}

TEST(GpuCrop, EqualsTheHostBitByBit) {
  if (device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
  for (const int size : {1, 31, 32, 33, 64, 100}) {
    const Made host = make(24, size, std::uint64_t(size));
    const Made device{host.bytes.to(at::kCUDA), host.crops.to(at::kCUDA)};
    for (const auto& [type, dtype] :
         {std::pair{at::kFloat, DType::f32}, {at::kBFloat16, DType::bf16}, {at::kDouble, DType::f64}}) {
      const at::Tensor expected = run(host, size, type, dtype), out = run(device, size, type, dtype).cpu();
      EXPECT_TRUE(at::equal(out, expected))
          << size << " " << c10::toString(type) << ": " << (out != expected).sum().item<std::int64_t>() << " of "
          << out.numel() << " differ, by " << (out - expected).abs().max().item<double>() << " at most";
    }
  }
}

// Memory is filled again only once the GPU has read it, and the host never waits in between.
TEST(GpuStaging, BatchesArriveWhole) {
  if (device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
  const std::int64_t n = 8 << 20;
  std::vector<at::Tensor> sums;
  std::optional<Staging> staging(std::in_place, at::Device(at::kCUDA, 0));
  const at::Tensor busy = at::ones({4096, 4096}, at::TensorOptions(at::kCUDA).dtype(at::kFloat));
  for (int k = 0; k < 40; ++k) {
    const auto slot = staging->take(n);
    std::memset(slot->host(), k, std::size_t(n));
    const at::Tensor there = slot->send(n);
    slot->wait();
    at::Tensor work = busy;
    for (int i = 0; i < 5; ++i) work = at::matmul(work, busy);  // the GPU is late
    sums.push_back(there.to(at::kLong).sum());
  }
  staging.reset();
  for (int k = 0; k < 40; ++k) EXPECT_EQ(sums[std::size_t(k)].item<std::int64_t>(), k * n);
}

}  // namespace

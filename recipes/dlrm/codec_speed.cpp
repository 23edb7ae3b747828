#include "recipes/dlrm/codec_speed.h"

#include "comm/error.h"
#include "compression/codecs/bounded.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <chrono>

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

// The best of three passes, each of so many calls and the wait for them; a pass ahead where there is a device to warm.
double best_seconds(int calls, const auto& call, const auto& wait) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int pass = calls > 1 ? -1 : 0; pass < 3; ++pass) {
    const auto begin = Clock::now();
    for (int k = 0; k < calls; ++k) call();
    wait();
    if (pass >= 0) best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count() / calls);
  }
  return best;
}

}  // namespace

CodecSpeed measure_codec(const std::string& codec, const std::vector<at::Tensor>& batches, double bound,
                         std::size_t count) {
  BoundedOptions o;
  o.codec = codec;
  const Bounded bounded(o, "codec");
  const at::Tensor& first = batches.front();
  const auto n = std::size_t(first.size(0)), d = std::size_t(first.size(1));
  const int calls = first.is_cpu() ? 1 : 10;
  const auto memory = [&](std::size_t bytes) {
    return at::empty({std::int64_t(std::max<std::size_t>(bytes, 1))}, first.options().dtype(at::kByte));
  };
  std::vector<TableChunk> chunks(count);
  for (std::size_t k = 0; k < count; ++k) {
    chunks[k] = {batches[k % batches.size()].const_data_ptr<float>(), n, d};
    chunks[k].bound = float(bound), chunks[k].scope = std::uint32_t(k);
  }
  const at::Tensor code = memory(count * bounded.max_bytes(n, d)), scratch = memory(bounded.scratch_bytes(chunks));
  const at::Tensor sizes = at::zeros({std::int64_t(count)}, first.options().dtype(at::kLong));
  at::Tensor known;
  CodecSpeed m;
  const double plain = double(count * n * d) * 4;
  m.encode = plain * 1e-9 /
             best_seconds(
                 calls, [&] { bounded.encode(chunks, buffer_of(code), buffer_of(sizes), buffer_of(scratch)); },
                 [&] { known = sizes.cpu(); });
  m.ratio = plain / double(known.sum().item<std::int64_t>());

  const at::Tensor back = at::empty({std::int64_t(count * n), std::int64_t(d)}, first.options());
  const at::Tensor status = at::zeros({1}, first.options().dtype(at::kInt));
  std::vector<CodedChunk> coded;
  const auto* next = code.const_data_ptr<std::uint8_t>();
  for (std::size_t k = 0; k < count; ++k) {
    const auto size = std::size_t(known[std::int64_t(k)].item<std::int64_t>());
    coded.push_back({next, size, back.mutable_data_ptr<float>() + k * n * d, n, d});
    next += size;
  }
  const at::Tensor more = memory(bounded.decode_scratch_bytes(coded));
  auto* bad = reinterpret_cast<std::uint32_t*>(status.mutable_data_ptr<std::int32_t>());
  m.decode = plain * 1e-9 /
             best_seconds(
                 calls, [&] { bounded.decode(coded, buffer_of(back).place, bad, buffer_of(more)); },
                 [&] { (void)status.cpu(); });
  if (status.item<std::int32_t>() != 0) throw Error(ExitCode::bug, "codec " + codec, "refuses its own code");
  return m;
}

}  // namespace trireme::dlrm

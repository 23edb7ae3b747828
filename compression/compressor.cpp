#include "compression/compressor.h"

#include "comm/error.h"

#include <map>

namespace trireme {
namespace {

using Makers = std::map<std::string, std::function<std::unique_ptr<Compressor>()>, std::less<>>;

// Inside a function: other files register before this one's statics are made.
Makers& makers() {
  static Makers all;
  return all;
}

}  // namespace

void Compressor::decode_sum(std::span<const ConstBuffer> codes, Buffer out) const {
  const auto next = std::make_unique_for_overwrite<float[]>(out.count);
  auto* sum = static_cast<float*>(out.data);
  for (std::size_t k = 0; k < codes.size(); ++k) {
    const std::uint64_t size = codes[k].count;
    const Buffer values{k == 0 ? sum : next.get(), out.count, DType::f32};
    decode(codes[k], {&size, 1}, {&values, 1});
    if (k == 0) continue;
    for (std::size_t i = 0; i < out.count; ++i) sum[i] += next[i];
  }
}

std::vector<std::string> compressors() {
  std::vector<std::string> names;
  for (const auto& [name, make] : makers()) names.push_back(name);
  return names;
}

std::unique_ptr<Compressor> make_compressor(std::string_view name, std::string_view where) {
  const auto found = makers().find(name);
  if (found != makers().end()) return found->second();
  std::string known;
  for (const auto& n : compressors()) known += (known.empty() ? "" : ", ") + n;
  throw UsageError(where, "unknown codec '" + std::string(name.substr(0, 60)) + "'", "known: " + known);
}

RegisterCompressor::RegisterCompressor(std::string name, std::function<std::unique_ptr<Compressor>()> make) {
  makers().emplace(std::move(name), std::move(make));
}

}  // namespace trireme

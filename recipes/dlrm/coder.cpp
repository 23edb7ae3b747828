#include "recipes/dlrm/coder.h"

#include "comm/error.h"

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

std::optional<Bounded> codec_of(const std::string& name, bool relative, const CompressionConfig& c, const char* place) {
  if (name == "raw") return std::nullopt;
  BoundedOptions o;
  o.codec = name, o.relative = relative, o.strict = c.strict, o.checksum = c.checksum;
  o.refuse_nonfinite = c.nonfinite == "error";
  return Bounded(o, place);
}

// Range of the finite values of each table, over all its chunks: known to its owner alone.
std::vector<float> ranges(const at::Tensor& rows, std::int64_t tables) {
  const at::Tensor of_table = rows.view({-1, tables, rows.size(1) * rows.size(2)});
  const auto extreme = [&](double instead, bool largest) {
    const at::Tensor low = of_table.nan_to_num(instead, instead, instead);
    return largest ? low.amax({0, 2}) : low.amin({0, 2});
  };
  at::Tensor least = of_table.amin({0, 2}), most = of_table.amax({0, 2});
  if (!(most - least).isfinite().all().item<bool>()) {
    const double huge = std::numeric_limits<float>::max();
    most = extreme(-huge, true), least = extreme(huge, false);
  }
  const at::Tensor r = (most - least).clamp_min(0).cpu();
  return {r.const_data_ptr<float>(), r.const_data_ptr<float>() + tables};
}

}  // namespace

Coder::Coder(const CompressionConfig& config, const DataConfig& data, std::int64_t tables)
    : config_(config),
      bounds_(config.forward.bounds, data.shape, tables, "compression.forward.classes"),
      forward_(codec_of(config.forward.codec, config.forward.scope == "chunk", config, "compression.forward.codec")),
      backward_(codec_of(config.backward.codec, true, config, "compression.backward.codec")) {}

ShardedTables::CodingOf Coder::forward(const std::vector<std::int64_t>& mine, std::int64_t step) const {
  if (!forward_) return {};
  return [this, &mine, step](const at::Tensor& rows) {
    Coding c{&*forward_, config_.forward.simulate, {}, {}};
    const auto n = std::int64_t(mine.size());
    std::vector<float> range;
    if (config_.forward.scope == "table" && rows.numel() > 0) range = ranges(rows, n);
    for (std::int64_t k = 0; k < rows.size(0); ++k) {
      const auto t = std::size_t(k % n);
      const double eb = relative(mine[t], step);
      c.bounds.push_back(range.empty() ? float(eb) : float(eb * double(range[t])));
      c.scopes.push_back(std::uint32_t(k));
    }
    return c;
  };
}

ShardedTables::CodingOf Coder::backward() const {
  if (!backward_) return {};
  return [this](const at::Tensor& gradient) {
    Coding c{&*backward_, config_.backward.simulate, {}, {}};
    for (std::int64_t k = 0; k < gradient.size(0); ++k) {
      c.bounds.push_back(float(config_.backward.bound));
      c.scopes.push_back(std::uint32_t(k));
    }
    return c;
  };
}

}  // namespace trireme::dlrm

#include "recipes/dlrm/coder.h"

#include "comm/error.h"
#include "data/tables/shapes.h"

#include <limits>
#include <set>

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

Bounded codec_named(const std::string& name, bool relative, const CompressionConfig& c, const char* place) {
  BoundedOptions o;
  o.codec = name, o.relative = relative, o.strict = c.strict, o.checksum = c.checksum;
  o.refuse_nonfinite = c.nonfinite == "error";
  return Bounded(o, place);
}

// Range of the finite values of each table, over all its chunks: known to its owner alone.
std::vector<float> ranges(const at::Tensor& rows, std::int64_t tables) {
  const at::Tensor of_table = rows.view({-1, tables, rows.size(1) * rows.size(2)});
  at::Tensor least = of_table.amin({0, 2}), most = of_table.amax({0, 2});
  if (!(most - least).isfinite().all().item<bool>()) {
    const double huge = std::numeric_limits<float>::max();
    most = of_table.nan_to_num(-huge, -huge, -huge).amax({0, 2});
    least = of_table.nan_to_num(huge, huge, huge).amin({0, 2});
  }
  const at::Tensor r = (most - least).clamp_min(0);
  return {r.const_data_ptr<float>(), r.const_data_ptr<float>() + tables};
}

}  // namespace

Coder::Coder(const CompressionConfig& config, const DataConfig& data, std::int64_t tables, bool on_device)
    : config_(config), bounds_(config.forward.bounds, data.shape, tables, "compression.forward.classes") {
  if (config.forward.codec != "raw") choose(data, tables);
  if (config.backward.codec != "raw")
    backward_.emplace(codec_named(config.backward.codec, true, config, "compression.backward.codec"));
  if (on_device && by_name_.size() > 1)
    throw UsageError("compression.forward.codec", "is another one for some tables, which a GPU cannot do",
                     "choose one for all, as auto");
}

// `published` and `analysis` name one for each table, any other codec is that of all.
void Coder::choose(const DataConfig& data, std::int64_t tables) {
  const std::string& name = config_.forward.codec;
  const char* place = "compression.forward.codec";
  std::vector<std::string> names(std::size_t(tables), name);
  if (name == "published") {
    const auto* s = shape_named(data.shape);
    if (!s || std::int64_t(s->encoders.size()) != tables)
      throw UsageError(place, "nothing is published for these tables", "published is for kaggle and terabyte");
    for (std::size_t t = 0; t < names.size(); ++t) names[t] = s->encoders[t] == 'L' ? "vector_lz" : "huffman";
  } else if (name == "analysis") {
    names = Analysis::load(config_.forward.bounds.classes, tables).codecs;
    if (std::int64_t(names.size()) != tables)
      throw UsageError(place, config_.forward.bounds.classes + " does not name a codec for each table",
                       "write it with trireme dlrm analyze");
  }
  const bool one = std::set<std::string>(names.begin(), names.end()).size() == 1;
  const bool relative = one || config_.forward.scope == "chunk";
  for (const auto& n : names)
    codecs_.push_back(&by_name_.try_emplace(n, codec_named(n, relative, config_, place)).first->second);
}

std::string Coder::codec_of(std::int64_t table) const {
  return codecs_.empty() ? "raw" : codecs_[std::size_t(table)]->options().codec;
}

ShardedTables::CodingOf Coder::forward(const std::vector<std::int64_t>& mine, std::int64_t step) const {
  if (!forward_on()) return {};
  return [this, &mine, step](const at::Tensor& rows) {
    Coding c;
    c.codec = codecs_.front(), c.simulate = config_.forward.simulate;
    const auto n = std::int64_t(mine.size());
    std::vector<float> range;  // several codecs are several calls, and none of them sees all of a table
    if (!codecs_.front()->options().relative && rows.numel() > 0) range = ranges(rows, n);
    for (std::int64_t k = 0; k < rows.size(0); ++k) {
      const auto t = std::size_t(k % n);
      const double bound = relative(mine[t], step);
      c.bounds.push_back(float(range.empty() ? bound : bound * double(range[t])));
      c.scopes.push_back(std::uint32_t(config_.forward.scope == "table" ? t : std::size_t(k)));
      if (by_name_.size() > 1) c.codecs.push_back(codecs_[std::size_t(mine[t])]);
    }
    return c;
  };
}

ShardedTables::CodingOf Coder::backward() const {
  if (!backward_on()) return {};
  return [this](const at::Tensor& gradient) {
    Coding c;
    c.codec = &*backward_, c.simulate = config_.backward.simulate;
    for (std::int64_t k = 0; k < gradient.size(0); ++k) {
      c.bounds.push_back(float(config_.backward.bound));
      c.scopes.push_back(std::uint32_t(k));
    }
    return c;
  };
}

}  // namespace trireme::dlrm

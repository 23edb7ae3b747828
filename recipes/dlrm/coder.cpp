#include "recipes/dlrm/coder.h"

#include "comm/error.h"
#include "data/tables/shapes.h"

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

Bounded codec_named(const std::string& name, const CompressionConfig& c, const char* place) {
  BoundedOptions o;
  o.codec = name, o.strict = c.strict, o.checksum = c.checksum;
  o.refuse_nonfinite = c.nonfinite == "error";
  return Bounded(o, place);
}

}  // namespace

Coder::Coder(const CompressionConfig& config, const DataConfig& data, std::int64_t tables)
    : config_(config), bounds_(config.forward.bounds, data.shape, tables, "compression.forward.classes") {
  if (config.forward.codec != "raw") choose(data, tables);
  if (config.backward.combine && config.backward.codec == "raw")
    throw UsageError("compression.backward.combine",
                     "spares bytes of codes alone, and compression.backward.codec is raw",
                     "name a codec, or set combine=false");
  if (config.backward.codec != "raw")
    backward_.emplace(codec_named(config.backward.codec, config, "compression.backward.codec"));
}

void check_training(const CompressionConfig& c, const TrainConfig& train) {
  if (train.ema > 0) throw UsageError("ema", "averages the MLPs, and tables have no average", "use ema=0");
  if (train.precision == "fp16")
    throw UsageError("precision", "fp16 scales the loss, and gradients of tables are not scaled back",
                     "use f32 or bf16");
  if (train.precision == "f64" && (c.forward.codec != "raw" || c.backward.codec != "raw"))
    throw UsageError("compression", "codes f32 values, and precision is f64", "use precision=f32");
}

void Coder::check_device(at::Device device, bool goes_on) const {
  if (device.is_cpu() || (config_.forward.codec == "raw" && !backward_)) return;
  if (config_.nonfinite == "error" && !goes_on)  // once it was passed over
    throw UsageError("compression.nonfinite", "is error, and on a GPU nobody waits to see what is in a row",
                     "use compression.nonfinite=raw (the gradients' check still skips such a step), or device=cpu");
  if (config_.checksum)
    throw UsageError("compression.checksum", "is true, and codes made on a GPU have none",
                     "use compression.checksum=false, or device=cpu");
  const auto check = [](const char* place, const std::string& codec) {
    if (codec == "smallest")
      throw UsageError(place, "smallest has no kernels for a GPU",
                       "use auto, which is nearest to it, another codec, or device=cpu");
  };
  for (const auto& [name, codec] : by_name_) check("compression.forward.codec", name);
  check("compression.backward.codec", config_.backward.codec);
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
    if (!config_.forward.bounds.from_file())
      throw UsageError(
          place,
          "analysis takes codecs from a file, and compression.forward.classes is " + config_.forward.bounds.classes,
          "name a file of trireme dlrm analyze there, or another codec here");
    names = Analysis::load(config_.forward.bounds.classes, tables).codecs;
    if (std::int64_t(names.size()) != tables)
      throw UsageError(place, config_.forward.bounds.classes + " does not name a codec for each table",
                       "write it with trireme dlrm analyze");
  }
  for (const auto& n : names) codecs_.push_back(&by_name_.try_emplace(n, codec_named(n, config_, place)).first->second);
}

std::string Coder::codec_of(std::int64_t table) const {
  return codecs_.empty() ? "raw" : codecs_[std::size_t(table)]->options().codec;
}

ShardedTables::CodingOf Coder::forward(const std::vector<std::int64_t>& mine, std::int64_t step, bool training) const {
  if (!forward_on()) return {};
  return [this, &mine, step, training](const at::Tensor& rows) {
    Coding c;
    c.in_room = training && has_room();
    c.codec = codecs_.front(), c.simulate = config_.forward.simulate;
    const auto n = std::int64_t(mine.size());
    for (std::int64_t k = 0; k < rows.size(0); ++k) {
      const auto t = std::size_t(k % n);
      c.bounds.push_back(float(relative(mine[t], step)));
      c.scopes.push_back(std::uint32_t(config_.forward.scope == "table" ? t : std::size_t(k)));
      if (by_name_.size() > 1) c.codecs.push_back(codecs_[std::size_t(mine[t])]);
    }
    return c;
  };
}

ShardedTables::CodingOf Coder::backward(bool training) const {
  if (!backward_on()) return {};
  return [this, training](const at::Tensor& gradient) {
    Coding c;
    c.in_room = training && has_room();
    c.codec = &*backward_, c.simulate = config_.backward.simulate;
    for (std::int64_t k = 0; k < gradient.size(0); ++k) {
      c.bounds.push_back(float(config_.backward.bound));
      c.scopes.push_back(std::uint32_t(k));
    }
    return c;
  };
}

}  // namespace trireme::dlrm

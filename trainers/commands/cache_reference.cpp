// `trireme data cache-reference MODEL DATA`.
#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/image_text.h"
#include "data/image_text/reference_features.h"
#include "framework/init_from.h"
#include "framework/models/clip_model.h"
#include "framework/placement.h"
#include "trainers/commands/data.h"
#include "trainers/commands/eval_data.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <future>
#include <thread>

#include <ATen/ATen.h>

#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

PairsSpec spec_of(const std::string& data, std::int64_t image_size) {
  PairsSpec spec;
  if (data.ends_with(".yaml") || data.ends_with(".yml"))
    spec = data_of_config(data).source;
  else if (fs::exists(data + "/config.resolved.yaml"))
    spec = data_of_run(data).source;
  else
    spec.files = {data};
  spec.image_size = int(image_size);
  return spec;
}

// Beside a prepared file, else here.
std::string default_path(const std::string& source) {
  fs::path path = source;
  if (path.has_extension() && path.extension() == ".h5") return path.replace_extension(".reference.h5").string();
  if (!path.has_filename()) path = path.parent_path();
  return path.stem().string() + ".reference.h5";
}

// True when `path` holds these very features.
bool keep_existing(const DataOptions& o, const std::string& path, const Pairs& pairs, const std::string& weights) {
  std::error_code error;
  if (o.force || !fs::exists(path, error)) return false;
  const ReferenceFeatures there = [&] {
    try {
      return ReferenceFeatures(path, pairs);
    } catch (const DataError& e) {
      throw DataError("", e.what(), "here: give another --out, or --force to replace it");
    }
  }();
  if (there.weights() != weights || there.type() != (o.type == "f16" ? at::kHalf : at::kFloat))
    throw DataError(path, "holds features of " + there.model() + ", of other weights or in another type",
                    "give another --out, or --force to replace it");
  std::printf("already cached: %s (--force makes it again)\n", path.c_str());
  return true;
}

// What evaluation would see, with the model's own transform and tokenizer. A broken picture's row is that of the pair
// that takes its place in training.
ImageTextOptions options_of(const ClipModel& model, const PairsSpec& spec, int threads) {
  ImageTextOptions o;
  const Preprocess& p = model.preprocess();
  o.size = int(p.size), o.context = model.config().context;
  o.square = [p](const Image& picture) { return p.square(picture); };
  for (std::size_t i = 0; i < 3; ++i) o.statistics.mean[i] = p.mean[i], o.statistics.std_dev[i] = p.std[i];
  o.threads = threads, o.dct_scaling = false, o.broken_share = spec.broken_share;
  return o;
}

std::vector<std::int64_t> all_ids(const Pairs& pairs) {
  std::vector<std::int64_t> ids = pairs.train_ids(), held_out = pairs.held_out_ids();
  ids.insert(ids.end(), held_out.begin(), held_out.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

class Progress {
 public:
  explicit Progress(std::size_t total) : total_(total) {}
  void operator()(std::size_t done) {
    const auto now = std::chrono::steady_clock::now();
    if (done < total_ && now - shown_ < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::seconds(30))) return;
    shown_ = now;
    std::fprintf(stderr, "%sencoding %zu / %zu%s", terminal_ ? "\r" : "", done, total_,
                 terminal_ && done < total_ ? "" : "\n");
  }

 private:
  const std::size_t total_;
  const bool terminal_ = isatty(STDERR_FILENO);
  std::chrono::steady_clock::time_point shown_ = std::chrono::steady_clock::now();
};

// The next pairs are decoded while these are encoded.
void encode(const ClipModel& model, const ImageTextDataset& dataset, const std::vector<std::int64_t>& ids, int batch,
            ReferenceFeaturesWriter& out) {
  const auto part = [&](std::size_t first) {
    return std::span(ids).subspan(first, std::min(std::size_t(batch), ids.size() - first));
  };
  const auto read = [&](std::size_t first) {
    return std::async(std::launch::async, [&, first] { return dataset.read(part(first), 0); });
  };
  Progress progress(ids.size());
  auto next = read(0);
  for (std::size_t first = 0; first < ids.size(); first += std::size_t(batch)) {
    const Batch pairs = next.get();
    if (first + std::size_t(batch) < ids.size()) next = read(first + std::size_t(batch));
    out.write(part(first),
              {model.embed_pixels(pairs.columns.at("image"), batch), model.embed_ids(pairs.columns.at("ids"), batch)});
    progress(first + part(first).size());
  }
}

}  // namespace

int cache_reference(const DataOptions& o) {
  if (o.model.empty() || o.data.empty())
    throw UsageError("trireme data cache-reference", "needs MODEL and DATA",
                     "trireme data cache-reference MODEL DATA: a run or OpenCLIP folder, and what it is to encode");
  if (o.type != "f16" && o.type != "f32") throw UsageError("--type", "'" + o.type + "' is none", "write f16 or f32");
  const auto start = std::chrono::steady_clock::now();
  const ClipModel model = load_clip(o.model, one_device(o.device), at::kFloat, o.tokenizer);
  const PairsSpec spec = spec_of(o.data, model.preprocess().size);
  const std::unique_ptr<Pairs> pairs = open_pairs(spec);
  for (const auto& line : pairs->notes()) std::fprintf(stderr, "%s\n", line.c_str());
  const std::vector<std::int64_t> ids = all_ids(*pairs);
  if (ids.empty()) throw DataError(pairs->path(), "has no pairs", "check DATA");
  const std::string path = o.out.empty() ? default_path(spec.files.size() == 1 ? pairs->path() : o.data) : o.out;
  const std::string weights = fingerprint(model.parameters());
  if (keep_existing(o, path, *pairs, weights)) return 0;
  const int threads = o.threads > 0 ? o.threads : std::clamp(int(std::thread::hardware_concurrency()), 1, 256);
  const ImageTextDataset dataset(*pairs, model.tokenizer(), options_of(model, spec, threads));
  write_whole(path, [&](const std::string& name) {
    ReferenceFeaturesWriter out(name, pairs->size(), model.config().embed_dim, o.type == "f16" ? at::kHalf : at::kFloat,
                                pairs->identity(), o.model, weights);
    encode(model, dataset, ids, o.batch, out);
    out.close();
  });
  for (const auto& line : dataset.take_broken()) std::fprintf(stderr, "%s\n", line.c_str());
  std::printf("wrote features of %zu pairs, %lld wide in %s, into %s in %.1f s\ntrain with reference.features=%s\n",
              ids.size(), static_cast<long long>(model.config().embed_dim), o.type.c_str(), path.c_str(),
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), path.c_str());
  return 0;
}

}  // namespace trireme

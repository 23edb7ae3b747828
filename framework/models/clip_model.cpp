#include "framework/models/clip_model.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/models/open_clip.h"
#include "framework/models/saved_run.h"

#include <filesystem>
#include <set>

namespace trireme {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

// Before memory is taken: a configuration may ask for any amount.
void check_shapes(const nn::ClipConfig& config, const Tensors& tensors, const std::string& path) {
  nn::Parameters wanted = nn::Parameters::unset(at::kFloat, at::kMeta);
  const nn::Clip shapes(config, 0, wanted);
  std::set<std::string> names;
  for (const auto& p : wanted.all()) {
    names.insert(p.name);
    const auto found = tensors.find(p.name);
    if (found == tensors.end())
      throw DataError(path, "has no tensor " + p.name, "its weights do not belong to its configuration");
    if (found->second.sizes() != p.value.sizes())
      throw DataError(path,
                      p.name + " has shape " + c10::str(found->second.sizes()) + ", its configuration says " +
                          c10::str(p.value.sizes()),
                      "its weights do not belong to its configuration");
  }
  for (const auto& [name, tensor] : tensors)
    if (!names.contains(name))
      throw DataError(path, "holds " + name + ", the model has no such tensor",
                      "its weights do not belong to its configuration");
}

ClipModel filled(const OpenClipConfig& config, std::optional<Tokenizer> tokenizer, const Tensors& tensors,
                 const std::string& path, at::Device device, at::ScalarType type) {
  ClipModel model(config.model, config.preprocess, std::move(tokenizer), path, device, type);
  at::NoGradGuard no_grad;
  for (const auto& p : model.parameters()) p.value.detach().copy_(tensors.at(p.name));
  return model;
}

std::optional<Tokenizer> tokenizer_file(const std::string& file) {
  return file.empty() ? std::nullopt : std::optional(Tokenizer::load(file));
}

ClipModel from_folder(const std::string& path, at::Device device, at::ScalarType type, const std::string& tokenizer) {
  const OpenClipConfig config = read_open_clip_config(path);
  const Tensors tensors = open_clip_tensors(path);
  check_shapes(config.model, tensors, path);
  return filled(config, tokenizer.empty() ? open_clip_tokenizer(path) : tokenizer_file(tokenizer), tensors, path,
                device, type);
}

constexpr std::string_view no_run_of_ours =
    "it is no run of fastclip, or of an older version: go on with it for a step";

ClipModel from_run(const std::string& path, at::Device device, at::ScalarType type, const std::string& tokenizer,
                   const ClipWeights& weights) {
  const SavedRun run = read_run(path, weights.step, weights.average);
  const std::string& place = run.snapshot.place;
  const auto text = [&](const std::string& name) {
    const auto found = run.text(name);
    if (!found) throw DataError(place, "does not say what model it is", no_run_of_ours);
    return *found;
  };
  const OpenClipConfig config = parse_open_clip_config(text("open_clip_config"), place);
  check_shapes(config.model, run.weights, place);
  return filled(config, tokenizer.empty() ? Tokenizer::from_text(text("tokenizer"), place) : tokenizer_file(tokenizer),
                run.weights, path, device, type);
}

// f(first row, rows) for `rows` at a time, on the host in one tensor.
template <class F>
at::Tensor by_rows(std::int64_t n, std::int64_t rows, std::int64_t width, const F& f) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> parts{at::empty({0, width}, at::kFloat)};
  for (std::int64_t i = 0; i < n; i += rows) parts.push_back(f(i, std::min(rows, n - i)).cpu());
  if (parts.size() > 1) parts.erase(parts.begin());
  return at::cat(parts);
}

}  // namespace

ClipModel::ClipModel(const nn::ClipConfig& config, const Preprocess& preprocess, std::optional<Tokenizer> tokenizer,
                     const std::string& path, at::Device device, at::ScalarType type)
    : path_(path),
      device_(device),
      type_(type),
      preprocess_(preprocess),
      tokenizer_(std::move(tokenizer)),
      parameters_(nn::Parameters::unset(type, device)),
      clip_(config, 0, parameters_) {
  if (tokenizer_ && tokenizer_->vocab_size() > config.vocab)
    throw UsageError(path,
                     "the tokenizer has " + std::to_string(tokenizer_->vocab_size()) + " ids, the model " +
                         std::to_string(config.vocab),
                     "give the merges file that the model was trained with: --tokenizer FILE");
}

const Tokenizer& ClipModel::tokenizer() const {
  if (!tokenizer_)
    throw UsageError(path_, "has no tokenizer (vocab.json, merges.txt)",
                     "--tokenizer FILE with the merges file it was trained with; OpenCLIP's is its "
                     "bpe_simple_vocab_16e6.txt.gz");
  return *tokenizer_;
}

at::Tensor ClipModel::embed_pixels(const at::Tensor& pixels, std::int64_t rows) const {
  const std::int64_t s = config().image_size;
  if (pixels.dim() != 4 || pixels.size(1) != 3 || pixels.size(2) != s || pixels.size(3) != s)
    throw DataError("pixels", "have shape " + c10::str(pixels.sizes()),
                    "the model reads [n, 3, " + std::to_string(s) + ", " + std::to_string(s) + "]");
  return by_rows(pixels.size(0), rows, config().embed_dim, [&](std::int64_t i, std::int64_t n) {
    return clip_.encode_image(pixels.narrow(0, i, n).to(type_).contiguous().to(device_), fused());
  });
}

at::Tensor ClipModel::embed_ids(const at::Tensor& ids, std::int64_t rows) const {
  if (ids.dim() != 2 || ids.size(1) < 1 || ids.size(1) > config().context || ids.scalar_type() != at::kLong)
    throw DataError("ids", "are " + c10::str(ids.sizes()) + " of " + std::string(c10::toString(ids.scalar_type())),
                    "the model reads i64 [n, at most " + std::to_string(config().context) + "]");
  if (ids.numel() && (ids.min().item<std::int64_t>() < 0 || ids.max().item<std::int64_t>() >= config().vocab))
    throw DataError("ids", "go beyond 0 to " + std::to_string(config().vocab - 1), "use the model's tokenizer");
  return by_rows(ids.size(0), rows, config().embed_dim, [&](std::int64_t i, std::int64_t n) {
    const at::Tensor part = ids.narrow(0, i, n).contiguous(), end = part.argmax(1).contiguous();
    return clip_.encode_text(part.to(device_), {end.const_data_ptr<std::int64_t>(), std::size_t(n)}, fused());
  });
}

at::Tensor ClipModel::embed_texts(std::span<const std::string> texts, std::int64_t rows) const {
  return embed_ids(tokenizer().encode_batch(texts, config().context), rows);
}

ClipModel load_clip(const std::string& path, at::Device device, at::ScalarType type, const std::string& tokenizer,
                    const ClipWeights& weights) {
  if (is_open_clip_folder(path) && (weights.step != "newest" || !weights.average))
    throw UsageError(weights.average ? "--step" : "--raw",
                     "is for a run: " + path + " is an OpenCLIP folder, which holds one kind of weights",
                     "leave it out");
  if (is_open_clip_folder(path)) return from_folder(path, device, type, tokenizer);
  if (!std::filesystem::is_directory(path + "/ckpt"))
    throw DataError(path, "is neither a run folder (ckpt/) nor an OpenCLIP folder (open_clip_config.json)",
                    "check the path; a .pt file goes into such a folder as docs/clip.md shows");
  return from_run(path, device, type, tokenizer, weights);
}

}  // namespace trireme

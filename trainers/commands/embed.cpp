// `trireme embed MODEL`: CLIP features of pictures and texts.
#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/folder.h"
#include "data/text/lines.h"
#include "data/text/text.h"
#include "framework/command.h"
#include "framework/formats/safetensors.h"
#include "framework/models/clip_model.h"
#include "framework/placement.h"

#include <algorithm>
#include <filesystem>
#include <iostream>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

namespace fs = std::filesystem;

struct EmbedOptions {
  std::string model, pixels, ids, images, texts, out, tokenizer, step = "newest", device = "auto";
  bool raw = false;
  int batch = 64;
};

std::vector<fs::path> pictures_in(const std::string& folder) {
  if (!fs::is_directory(folder)) throw DataError(folder, "is no folder", "check --images");
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (is_picture(entry.path().string())) files.push_back(entry.path());
  if (files.empty())
    throw DataError(folder, "holds no .png, .jpg or .jpeg file, nor .webp that this build reads", "check --images");
  std::sort(files.begin(), files.end());
  return files;
}

std::vector<std::string> texts_in(const std::string& path) {
  const auto bytes = read_file(path, std::int64_t(1) << 30);
  const auto text = decode_text({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!text) throw DataError(path, "is no text", "write it as UTF-8");
  return lines_of(text->text);
}

at::Tensor only_tensor(const std::string& path, const std::string& name) { return Safetensors(path).tensor(name); }

at::Tensor embed_files(const ClipModel& model, const std::vector<fs::path>& files, int batch) {
  std::vector<at::Tensor> parts;
  for (std::size_t i = 0; i < files.size(); i += std::size_t(batch)) {
    std::vector<at::Tensor> pixels;
    for (std::size_t k = i; k < std::min(files.size(), i + std::size_t(batch)); ++k)
      pixels.push_back(model.preprocess()(load_image(files[k].string())));
    parts.push_back(model.embed_pixels(at::stack(pixels), batch));
  }
  return at::cat(parts);
}

int embed(const EmbedOptions& o) {
  if (o.pixels.empty() && o.ids.empty() && o.images.empty() && o.texts.empty())
    throw UsageError("embed", "nothing to embed", "give --pixels, --ids, --images or --texts");
  if ((!o.pixels.empty() && !o.images.empty()) || (!o.ids.empty() && !o.texts.empty()))
    throw UsageError("embed", "two sources of one kind", "give --pixels or --images, --ids or --texts");
  if (o.out.empty()) throw UsageError("embed", "no file to write", "give --out FILE.safetensors");
  const ClipModel model = load_clip(o.model, one_device(o.device), at::kFloat, o.tokenizer, {o.step, !o.raw});
  std::vector<NamedTensor> features;
  std::map<std::string, std::string> metadata;
  if (!o.images.empty()) {
    const auto files = pictures_in(o.images);
    nlohmann::json names;
    for (const auto& f : files) names.push_back(f.filename().string());
    metadata["images"] = names.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    features.push_back({"image_features", embed_files(model, files, o.batch)});
  } else if (!o.pixels.empty()) {
    features.push_back({"image_features", model.embed_pixels(only_tensor(o.pixels, "pixels"), o.batch)});
  }
  if (!o.texts.empty())
    features.push_back({"text_features", model.embed_texts(texts_in(o.texts), o.batch)});
  else if (!o.ids.empty())
    features.push_back({"text_features", model.embed_ids(only_tensor(o.ids, "ids"), o.batch)});
  features.push_back({"logit_scale", model.clip().log_scale().detach().exp()});
  write_safetensors(o.out, features, metadata);
  for (const auto& f : features) std::cout << f.name << " " << f.tensor.sizes() << "\n";
  std::cout << "embed: " << o.out << std::endl;
  return 0;
}

const Commands::Entry registered(
    {"embed", "CLIP features of pictures and texts, unit length", [](CommandOptions& command) {
       const auto o = std::make_shared<EmbedOptions>();
       command.text("model", o->model, "run folder of fastclip, or OpenCLIP folder", command.required);
       command.text("--pixels", o->pixels, "safetensors file with `pixels` [n, 3, h, w], normalised");
       command.text("--ids", o->ids, "safetensors file with `ids` [n, context] i64");
       command.text("--images", o->images, "folder of PNG, JPEG and WebP files, in order of their names");
       command.text("--texts", o->texts, "file with a text on each line");
       command.text("--out", o->out,
                    "safetensors file to write: image_features, text_features [n, d] f32, logit_scale");
       command.text("--tokenizer", o->tokenizer, "CLIP merges file, where the model brings none");
       command.text("--step", o->step, "of a run: a checkpoint's step, newest or best");
       command.text("--device", o->device, "auto, cpu or cuda");
       command.flag("--raw", o->raw, "of a run: the weights as trained, not their running average");
       command.number("--batch", o->batch, "rows at a time", {1, 65536});
       return [o](const CommandLine&) { return embed(*o); };
     }});

}  // namespace
}  // namespace trireme

#include "framework/models/open_clip.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/json.h"
#include "framework/formats/safetensors.h"
#include "framework/io/file_io.h"

#include <filesystem>

namespace trireme {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* weight_files[] = {"open_clip_model.safetensors", "open_clip_pytorch_model.safetensors",
                                        "model.safetensors"};
constexpr std::string_view sot = "<start_of_text>", eot = "<end_of_text>";

}  // namespace

std::map<std::string, at::Tensor> open_clip_tensors(const std::string& folder) {
  for (const char* name : weight_files) {
    const std::string path = folder + "/" + name;
    if (!fs::exists(path)) continue;
    const Safetensors file(path);
    std::map<std::string, at::Tensor> tensors;
    for (const auto& n : file.names()) {
      const std::string ours = n.starts_with("text.") ? n.substr(5) : n;  // of a model with `custom_text`
      at::Tensor t = file.tensor(n);
      if (ours.starts_with("logit_") && t.numel() == 1) t = t.reshape(at::IntArrayRef());
      if (!tensors.emplace(ours, t).second) throw DataError(path, "holds " + ours + " twice", "fetch the file again");
    }
    return tensors;
  }
  throw DataError(folder,
                  "has no open_clip_model.safetensors, open_clip_pytorch_model.safetensors or model.safetensors",
                  "turn a .bin or .pt into safetensors first (docs/clip.md)");
}

std::optional<Tokenizer> open_clip_tokenizer(const std::string& folder) {
  const std::string merges = folder + "/merges.txt", vocab = folder + "/vocab.json";
  if (!fs::exists(merges)) return std::nullopt;
  Tokenizer tokenizer = Tokenizer::load(merges);
  if (!fs::exists(vocab)) return tokenizer;
  const auto bytes = read_file(vocab, 1 << 26);
  const json ids = parse_json({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!ids.is_object())
    throw DataError(vocab, "is no JSON object, or nests deeper than 8 levels", "fetch the file again");
  const auto symbols = tokenizer.symbols();
  const auto wrong = [&](const std::string& what) {
    return DataError(vocab, what, "only CLIP's numbering is read: bytes, bytes at a word's end, merges, two marks");
  };
  for (std::size_t i = 0; i + 2 < symbols.size(); ++i)
    if (const auto found = ids.find(symbols[i]); found == ids.end() || *found != i)
      throw wrong("does not give number " + std::to_string(i) + " to the symbol that merges.txt makes there");
  if (ids.size() != symbols.size())
    throw wrong("has " + std::to_string(ids.size()) + " symbols, merges.txt makes " + std::to_string(symbols.size()));
  return tokenizer;
}

void write_open_clip_tokenizer(const std::string& folder, const Tokenizer& tokenizer, std::int64_t context) {
  FileIo& io = system_io();
  auto symbols = tokenizer.symbols();
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object();
  for (std::size_t i = 0; i < symbols.size(); ++i) vocab[symbols[i]] = i;
  const std::string text = tokenizer.text();
  const json marks{{"bos_token", sot}, {"eos_token", eot}, {"unk_token", eot}, {"pad_token", eot}};
  json config = marks;
  config["tokenizer_class"] = "CLIPTokenizer";
  config["model_max_length"] = context;
  config["add_prefix_space"] = false;
  config["do_lower_case"] = true;
  write_durably(io, folder + "/vocab.json", vocab.dump());
  write_durably(io, folder + "/merges.txt", "#version: 0.2" + text.substr(text.find('\n')));
  write_durably(io, folder + "/tokenizer_config.json", config.dump(2) + "\n");
  write_durably(io, folder + "/special_tokens_map.json", marks.dump(2) + "\n");
}

}  // namespace trireme

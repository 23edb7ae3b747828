#include "framework/formats/hf_folder.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/json.h"
#include "framework/io/file_io.h"

#include <cstdio>
#include <filesystem>

#include <ATen/ATen.h>

namespace trireme {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* models = "model";  // transformers' stem
std::string whole(const std::string& stem) { return stem + ".safetensors"; }
std::string index_name(const std::string& stem) { return stem + ".safetensors.index.json"; }
constexpr std::int64_t largest_text = 1 << 26;
constexpr const char* tokenizer_files[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
    "merges.txt",     "added_tokens.json",     "chat_template.jinja",     "generation_config.json"};

std::string text_of(const std::string& path) {
  const auto bytes = read_file(path, largest_text);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The index is a file from outside: a name with a folder in it would read anywhere.
bool plain_name(const std::string& name) {
  return name.ends_with(".safetensors") && name.find('/') == name.npos && name.find('\0') == name.npos;
}

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (const auto n : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(n);
  return text + "]";
}

std::string shard_name(const std::string& stem, std::size_t i, std::size_t n) {
  char name[64];
  std::snprintf(name, sizeof name, "-%05zu-of-%05zu.safetensors", i + 1, n);
  return stem + name;
}

}  // namespace

bool is_hf_folder(const std::string& path) {
  return fs::is_regular_file(path + "/config.json") &&
         (fs::is_regular_file(path + "/" + whole(models)) || fs::is_regular_file(path + "/" + index_name(models)));
}

HfFolder::HfFolder(const std::string& folder, const std::string& stem)
    : folder_(folder), config_file_(folder + "/config.json") {
  if (!fs::is_directory(folder)) throw DataError(folder, "is no folder", "give a Hugging Face model folder");
  config_ = text_of(config_file_);
  const std::string single = whole(stem), index = index_name(stem);
  if (fs::exists(folder + "/" + single)) {
    const auto file = files_.emplace(single, Safetensors(folder + "/" + single)).first;
    for (const auto& name : file->second.names()) file_of_[name] = single;
  } else if (fs::exists(folder + "/" + index)) {
    add_shards(folder + "/" + index);
  } else {
    throw DataError(folder, "has neither " + single + " nor " + index,
                    "save the model with safetensors: .bin files are not read");
  }
}

void HfFolder::add_shards(const std::string& index) {
  const json root = parse_json(text_of(index));
  if (!root.is_object() || !root.contains("weight_map") || !root["weight_map"].is_object())
    throw DataError(index, "has no weight_map", "fetch the file again");
  for (const auto& [name, value] : root["weight_map"].items()) {
    const std::string place = "tensor '" + name + "' ";
    if (!value.is_string() || !plain_name(value.get<std::string>()))
      throw DataError(index, place + "is placed in no file of this folder", "fetch the file again");
    const std::string file = value.get<std::string>();
    if (!files_.contains(file)) {
      if (!fs::exists(folder_ + "/" + file))
        throw DataError(folder_ + "/" + file, "is missing: the index places " + place + "in it", "fetch the file");
      files_.emplace(file, Safetensors(folder_ + "/" + file));
    }
    if (!files_.at(file).has(name))
      throw DataError(folder_ + "/" + file, "lacks " + place + "that the index places in it", "fetch both files again");
    file_of_[name] = file;
  }
}

std::vector<std::string> HfFolder::names() const {
  std::vector<std::string> all;
  for (const auto& [name, file] : file_of_) all.push_back(name);
  return all;
}

std::string HfFolder::file_of(const std::string& name) const {
  const auto found = file_of_.find(name);
  return found == file_of_.end() ? folder_ : folder_ + "/" + found->second;
}

at::Tensor HfFolder::tensor(const std::string& name, at::IntArrayRef shape) const {
  const auto found = file_of_.find(name);
  if (found == file_of_.end())
    throw DataError(folder_, "has no tensor '" + name + "'", "the weights do not belong to this config.json");
  at::Tensor t = files_.at(found->second).tensor(name);
  if (t.sizes() != shape)
    throw DataError(
        file_of(name),
        "tensor '" + name + "' has the shape " + shape_text(t.sizes()) + ", config.json asks for " + shape_text(shape),
        "the weights do not belong to this config.json");
  if (!at::isFloatingType(t.scalar_type()))
    throw DataError(file_of(name), "tensor '" + name + "' holds no floating numbers", "quantized weights are not read");
  return t;
}

HfWriter::HfWriter(const std::string& folder, std::int64_t file_bytes, const std::string& stem)
    : folder_(folder), stem_(stem), file_bytes_(file_bytes) {
  make_folder(system_io(), folder);
  // config.json first: without it the folder is no model while it is written.
  std::vector<std::string> old{folder + "/config.json"};
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name == index_name(stem) || name == whole(stem) ||
        (name.starts_with(stem + "-") && name.ends_with(".safetensors")))
      old.push_back(entry.path().string());
  }
  for (const char* name : tokenizer_files) old.push_back(folder + "/" + name);
  for (const auto& path : old) {
    std::error_code error;
    fs::remove(path, error);
    if (error) throw DataError(path, "cannot be replaced: " + error.message(), "choose another folder");
  }
}

std::string HfWriter::part(std::size_t i) const {
  return folder_ + "/" + stem_ + "-part-" + std::to_string(i) + ".safetensors";
}

void HfWriter::add(const NamedTensor& t) {
  const auto bytes = std::int64_t(t.tensor.nbytes());
  if (!pending_.empty() && pending_bytes_ + bytes > file_bytes_) flush();
  pending_.push_back({t.name, t.tensor.detach().to(at::kCPU)});
  pending_bytes_ += bytes;
  total_bytes_ += bytes;
}

void HfWriter::flush() {
  write_safetensors(part(files_.size()), pending_, {{"format", "pt"}});
  files_.emplace_back();
  for (const auto& t : pending_) files_.back().push_back(t.name);
  pending_.clear();
  pending_bytes_ = 0;
}

void HfWriter::finish(const std::string& config) {
  flush();
  FileIo& io = system_io();
  const std::size_t n = files_.size();
  json map = json::object();
  for (std::size_t i = 0; i < n; ++i) {
    const std::string name = n == 1 ? whole(stem_) : shard_name(stem_, i, n);
    rename_path(io, part(i), folder_ + "/" + name);
    for (const auto& tensor : files_[i]) map[tensor] = name;
  }
  if (n > 1)
    replace_durably(io, folder_ + "/" + index_name(stem_),
                    json{{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", map}}.dump(2) + "\n");
  replace_durably(io, folder_ + "/config.json", config);
}

void copy_tokenizer(const std::string& from, const std::string& to) {
  for (const char* name : tokenizer_files)
    if (fs::is_regular_file(from + "/" + name))
      replace_durably(system_io(), to + "/" + std::string(name), text_of(from + "/" + name));
}

}  // namespace trireme

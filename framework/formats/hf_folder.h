// A model folder of Hugging Face: config.json and STEM.safetensors, or shards that STEM.safetensors.index.json names
// (transformers: "model", diffusers: "diffusion_pytorch_model"). What the folder says of the model is text here:
// framework/models reads it.
#pragma once
#include "framework/formats/safetensors.h"

#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

bool is_hf_folder(const std::string& path);  // config.json and weights, so that the path is a model's

// An open folder; files stay mapped. DataError with file and tensor for all that is not as the format says: a shard
// that is no plain name, is missing or lacks what the index places in it. Const members from any thread.
class HfFolder {
 public:
  explicit HfFolder(const std::string& folder, const std::string& stem = "model");

  const std::string& config() const { return config_; }  // the text of config.json
  const std::string& config_file() const { return config_file_; }
  std::vector<std::string> names() const;  // sorted
  bool has(const std::string& name) const { return file_of_.contains(name); }
  // On the host, of the file's dtype; it keeps its file mapped by itself. `shape`: what it must have.
  at::Tensor tensor(const std::string& name, at::IntArrayRef shape) const;
  std::string file_of(const std::string& name) const;  // its path, for errors

 private:
  void add_shards(const std::string& index);
  std::string folder_, config_file_, config_;
  std::map<std::string, Safetensors> files_;    // by file name
  std::map<std::string, std::string> file_of_;  // by tensor
};

// Writes a folder tensor by tensor, in files of at most `file_bytes` (a larger tensor has a file of its own), so that a
// model need not be in memory whole. What another model left in the folder goes first; config.json comes last: with it
// the folder is a model.
class HfWriter {
 public:
  HfWriter(const std::string& folder, std::int64_t file_bytes, const std::string& stem = "model");
  // A copy that is on the host is kept until its file is full. No name twice.
  void add(const NamedTensor& tensor);
  void finish(const std::string& config);

 private:
  void flush();
  std::string part(std::size_t i) const;
  std::string folder_, stem_;
  std::int64_t file_bytes_, pending_bytes_ = 0, total_bytes_ = 0;
  std::vector<NamedTensor> pending_;
  std::vector<std::vector<std::string>> files_;  // the names in each
};

// Copies tokenizer.json and its companions from one folder to another, those that are there.
void copy_tokenizer(const std::string& from, const std::string& to);

}  // namespace trireme

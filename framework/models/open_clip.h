// OpenCLIP's hub layout: a folder with open_clip_config.json ({"model_cfg", "preprocess_cfg"}), weights, and a Hugging
// Face CLIP tokenizer (vocab.json, merges.txt). Read and written as open_clip 3.3.0 does ("local-dir:FOLDER").
#pragma once
#include "data/text/tokenizer.h"
#include "framework/models/clip_config.h"
#include "framework/models/preprocess.h"

#include <map>
#include <optional>

#include <ATen/core/Tensor.h>

namespace trireme {

struct OpenClipConfig {
  nn::ClipConfig model;
  Preprocess preprocess;
};

bool is_open_clip_folder(const std::string& path);

// A key that is unknown, or asks for a model that is not ours (another tower, layer scale, pooling, norm, ...), is a
// DataError naming it; keys that change no feature are passed over. `place` names the text.
OpenClipConfig parse_open_clip_config(std::string_view json, const std::string& place);
OpenClipConfig read_open_clip_config(const std::string& folder);
// `tokenizer`: with the key that makes open_clip read the folder's tokenizer instead of its own vocabulary.
std::string print_open_clip_config(const OpenClipConfig& config, bool tokenizer);

// By our names: of the first that is there of open_clip_model.safetensors, open_clip_pytorch_model.safetensors and
// model.safetensors, as open_clip chooses. Host tensors that keep the file mapped.
std::map<std::string, at::Tensor> open_clip_tensors(const std::string& folder);

// The folder's; none if it has no merges.txt. DataError if vocab.json numbers it in another way than CLIP does.
std::optional<Tokenizer> open_clip_tokenizer(const std::string& folder);
void write_open_clip_tokenizer(const std::string& folder, const Tokenizer& tokenizer, std::int64_t context);

}  // namespace trireme

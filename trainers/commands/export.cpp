// `trireme export RUN`: a model as files of other tools.
#include "comm/error.h"
#include "comm/local/self.h"
#include "framework/command.h"
#include "framework/formats/safetensors.h"
#include "framework/init_from.h"
#include "framework/io/file_io.h"
#include "framework/models/adapters.h"
#include "framework/models/causal_lm_load.h"
#include "framework/models/clip_model.h"
#include "framework/models/open_clip.h"
#include "trainers/commands/eval_run.h"

#include <cerrno>
#include <iostream>
#include <system_error>

namespace trireme {
namespace {

struct ExportOptions {
  std::string model, out, format, tokenizer, adapter, step = "newest";
  int shard_mib = 4096;
  bool raw = false;
};

// What another model left there: without its config the folder is no model, and its tokenizer would pass for ours.
// tokenizer.json is read before vocab.json and merges.txt by those who know it.
void clear(FileIo& io, const std::string& folder) {
  for (const char* name : {"open_clip_config.json", "tokenizer.json", "added_tokens.json", "vocab.json", "merges.txt",
                           "tokenizer_config.json", "special_tokens_map.json"}) {
    const std::string path = folder + "/" + name;
    if (const int status = io.unlink(path); status < 0 && status != -ENOENT)
      throw DataError(path, "cannot be replaced: " + std::generic_category().message(-status), "choose another --out");
    if (name == std::string_view("open_clip_config.json")) sync_folder(io, folder);
  }
}

// Weights by the recipe's own names, which init_from reads back.
int export_run(const ExportOptions& o) {
  if (o.step != "newest" || o.raw)
    throw UsageError(o.raw ? "--raw" : "--step", "is for CLIP models, and safetensors are of the newest checkpoint",
                     "leave it out");
  FileIo& io = system_io();
  make_folder(io, o.out);
  std::vector<NamedTensor> tensors;
  const auto self = make_self();
  for (const auto& [name, tensor] : weights_of(o.model, "RUN", *self)) tensors.push_back({name, tensor});
  const std::string file = o.out + "/model.safetensors";
  write_safetensors(file, tensors, {{"format", "pt"}});
  std::cout << "export: safetensors.torch.load_file('" << file << "'), " << tensors.size() << " tensors" << std::endl;
  return 0;
}

// A language model, with an adapter in its weights if one is given.
int export_hf(const ExportOptions& o) {
  CausalLm model = load_causal_lm(o.model, at::kCPU, {}, {o.step, !o.raw});
  if (!o.adapter.empty()) model = merged(model, read_peft(o.adapter), o.adapter);
  write_hf_folder(o.out, model, std::int64_t(o.shard_mib) << 20, o.model);
  std::cout << "export: transformers.AutoModelForCausalLM.from_pretrained('" << o.out << "')" << std::endl;
  return 0;
}

int export_model(const ExportOptions& o) {
  if (o.out.empty()) throw UsageError("export", "no folder to write", "give --out DIR");
  const bool language = is_hf_folder(o.model) || model_of(o.model) == "causal_lm";
  if (o.format == "hf" || (o.format.empty() && language)) return export_hf(o);
  if (!o.adapter.empty()) throw UsageError("--adapter", "is for --format hf", "leave it out");
  if (o.format == "safetensors" || (o.format.empty() && model_of(o.model) != "clip")) return export_run(o);
  if (o.format != "openclip" && !o.format.empty())
    throw UsageError("--format", "'" + o.format + "' is none", "write openclip, hf or safetensors");
  const ClipModel model = load_clip(o.model, at::kCPU, at::kFloat, o.tokenizer, {o.step, !o.raw});
  FileIo& io = system_io();
  make_folder(io, o.out);
  clear(io, o.out);
  std::vector<NamedTensor> tensors;
  for (const auto& p : model.parameters()) tensors.push_back({p.name, p.value.detach()});
  write_safetensors(o.out + "/open_clip_model.safetensors", tensors, {{"format", "pt"}});
  if (model.has_tokenizer()) write_open_clip_tokenizer(o.out, model.tokenizer(), model.config().context);
  // Last: with it the folder is a model.
  replace_durably(io, o.out + "/open_clip_config.json",
                  print_open_clip_config({model.config(), model.preprocess()}, model.has_tokenizer()));
  std::cout << "export: open_clip.create_model_and_transforms('local-dir:" << o.out << "')" << std::endl;
  return 0;
}

const Commands::Entry registered(
    {"export", "writes a model as open_clip, transformers or PyTorch loads it", [](CommandOptions& command) {
       const auto o = std::make_shared<ExportOptions>();
       command.text("model", o->model, "run folder, OpenCLIP folder, or Hugging Face folder", command.required);
       command.text("--out", o->out, "folder to write");
       command.text(
           "--format", o->format,
           "openclip: config, weights and tokenizer in the layout of its hub; hf: a language model's folder for "
           "transformers; safetensors: the weights by their names; default: openclip of a CLIP model, hf of a language "
           "model");
       command.text("--adapter", o->adapter, "adapter folder of PEFT, which is added to the weights (hf)");
       command.number("--shard-mib", o->shard_mib, "size of a weights file (hf)", {1, 1 << 20});
       command.text("--tokenizer", o->tokenizer, "CLIP merges file, where the model brings none");
       command.text("--step", o->step, "of a run: a checkpoint's step, newest or best");
       command.flag("--raw", o->raw, "of a run: the weights as trained, not their running average");
       return [o](const CommandLine&) { return export_model(*o); };
     }});

}  // namespace
}  // namespace trireme

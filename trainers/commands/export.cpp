// `trireme export RUN`: a model as files of other tools.
#include "comm/error.h"
#include "comm/local/self.h"
#include "data/file.h"
#include "framework/command.h"
#include "framework/formats/safetensors.h"
#include "framework/init_from.h"
#include "framework/io/file_io.h"
#include "framework/models/adapters.h"
#include "framework/models/causal_lm_load.h"
#include "framework/models/clip_model.h"
#include "framework/models/dit/saved_dit.h"
#include "framework/models/open_clip.h"
#include "trainers/commands/eval_run.h"
#include "trainers/commands/language_model.h"
#include "trainers/run_folder.h"
#include "trainers/sweep/run.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <iostream>
#include <system_error>
#include <tuple>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

struct ExportOptions {
  std::string model, out, format, tokenizer, adapter, task, step = "newest", precision = "file";
  int shard_mib = 4096, shard_kib = 0;
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

// Options that the format does not know would be passed over: weights of another type, or without the adapter.
void check_options(const ExportOptions& o, const std::string& format) {
  const std::tuple<const char*, bool, std::string> all[] = {{"--task", !o.task.empty(), "peft"},
                                                            {"--adapter", !o.adapter.empty(), "hf"},
                                                            {"--precision", o.precision != "file", "hf, diffusers"},
                                                            {"--shard-mib", o.shard_mib != 4096, "hf, diffusers"},
                                                            {"--shard-kib", o.shard_kib != 0, "diffusers"},
                                                            {"--tokenizer", !o.tokenizer.empty(), "openclip"},
                                                            {"--step", o.step != "newest", "openclip, hf, diffusers"},
                                                            {"--raw", o.raw, "openclip, hf, diffusers"}};
  for (const auto& [name, given, formats] : all)
    if (given && formats.find(format) == formats.npos)
      throw UsageError(name, "is for --format " + formats + ", and this is " + format, "leave it out");
  if (o.shard_kib && o.shard_mib != 4096)
    throw UsageError("--shard-kib", "is the size of a file too, as --shard-mib is", "give one of them");
}

// The format where none is named: what the model is.
std::string format_of(const ExportOptions& o) {
  if (o.format.empty()) {
    if (is_hf_folder(o.model)) return "hf";
    if (is_denoiser_folder(o.model)) return "diffusers";
    const std::string model = model_of(o.model);
    return model == "dit" ? "diffusers" : model == "causal_lm" ? "hf" : model == "clip" ? "openclip" : "safetensors";
  }
  for (const char* known : {"openclip", "hf", "diffusers", "peft", "safetensors"})
    if (o.format == known) return o.format;
  throw UsageError("--format", "'" + o.format + "' is none", "write openclip, hf, diffusers, peft or safetensors");
}

// Weights by the recipe's own names, which init_from reads back.
int export_run(const ExportOptions& o) {
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
  CausalLm model = load_causal_lm(o.model, at::kCPU, weights_type(o.precision), {o.step, !o.raw});
  if (!o.adapter.empty()) model = merged(model, read_peft(o.adapter), o.adapter);
  write_hf_folder(o.out, model, std::int64_t(o.shard_mib) << 20, o.model);
  std::cout << "export: transformers.AutoModelForCausalLM.from_pretrained('" << o.out << "')" << std::endl;
  return 0;
}

// A small diffusion transformer and its prompts, of a run, or any that stands in diffusers' layout already.
int export_diffusers(const ExportOptions& o) {
  const bool folder = is_denoiser_folder(o.model);
  if (folder && (o.step != "newest" || o.raw))
    throw UsageError(o.step != "newest" ? "--step" : "--raw",
                     "is of a run, and " + o.model + " is a folder of diffusers", "leave it out");
  if (!folder && !std::filesystem::exists(o.model + "/ckpt"))
    throw UsageError(o.model, "is neither a run nor a transformer's folder of diffusers",
                     "name one with config.json, whose _class_name is a layout, and its safetensors");
  std::error_code none;
  if (folder && std::filesystem::equivalent(o.model, o.out, none))
    throw UsageError("--out", "is the model's own folder", "name another");
  const auto type = weights_type(o.precision);
  const SavedDit dit =
      folder ? dit_of_folder(o.model, type) : dit_of_run(o.model, o.step, !o.raw, at::kCPU, type.value_or(at::kFloat));
  const std::int64_t shard = o.shard_kib > 0 ? std::int64_t(o.shard_kib) << 10 : std::int64_t(o.shard_mib) << 20;
  export_dit(dit, o.out, shard);
  const std::string name = dit.model->config().at("_class_name");
  std::cout << "export: diffusers." << name << ".from_pretrained('" << o.out << "')" << std::endl;
  return 0;
}

// The tasks of a sweep that are over, by name.
std::vector<std::string> tasks_over(const std::string& run) {
  std::vector<std::string> tasks;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(run, ignored))
    if (std::filesystem::exists(entry.path() / "result.json")) tasks.push_back(entry.path().filename().string());
  std::sort(tasks.begin(), tasks.end());
  return tasks;
}

// The best adapter of a sweep's task.
int export_peft(const ExportOptions& o) {
  const auto tasks = tasks_over(o.model);
  if (tasks.empty())
    throw DataError(o.model, "holds no task of a sweep that is over", "give the folder of `trireme sweep`");
  std::string names;
  for (const auto& t : tasks) names += (names.empty() ? "" : ", ") + t;
  if (o.task.empty() && tasks.size() > 1)
    throw UsageError(o.model, "holds several tasks: " + names, "add --task " + tasks.front());
  const std::string task = o.task.empty() ? tasks.front() : o.task;
  if (std::find(tasks.begin(), tasks.end(), task) == tasks.end())
    throw UsageError("--task", "no task '" + task + "' is over in " + o.model, "take one of: " + names);
  const auto outcome = *sweep::read_outcome(o.model + "/" + task);
  if (outcome.winner < 0) throw DataError(o.model + "/" + task, "has no winner: no job ended with a result");
  const std::string from = o.model + "/" + task + "/winner";
  const PeftAdapter adapter = read_peft(from);
  FileIo& io = system_io();
  make_folder(io, o.out);
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json"}) {  // with its config it is an adapter
    const auto bytes = read_file(from + "/" + name, std::int64_t(1) << 40);
    replace_durably(io, o.out + "/" + name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  const std::string& base = adapter.config.base_model;
  std::cout << "export: " << outcome.jobs[std::size_t(outcome.winner)].candidate.job
            << "; peft.PeftModel.from_pretrained(model, '" << o.out << "'), "
            << (base.empty() ? "whose base has no folder: its weights were drawn" : "model from " + base) << std::endl;
  return 0;
}

int export_model(const ExportOptions& o) {
  if (o.out.empty()) throw UsageError("export", "no folder to write", "give --out DIR");
  const std::string format = format_of(o);
  check_options(o, format);
  if (format == "peft") return export_peft(o);
  refuse_sweep(o.model);
  refuse_sweep(o.adapter);
  if (format == "diffusers") return export_diffusers(o);
  if (format == "hf") return export_hf(o);
  if (format == "safetensors") return export_run(o);
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
       command.text("model", o->model,
                    "run folder, OpenCLIP folder, Hugging Face folder, or a transformer's folder of diffusers",
                    command.required);
       command.text("--out", o->out, "folder to write");
       command.text(
           "--format", o->format,
           "openclip: config, weights and tokenizer in the layout of its hub; hf: a language model's folder for "
           "transformers; diffusers: a diffusion transformer's; peft: the winner of a sweep, whose folder is given; "
           "safetensors: the weights by their names; "
           "default: openclip of a CLIP model, hf of a language "
           "model, diffusers of a diffusion transformer");
       command.text("--task", o->task, "of a sweep: whose winner (peft)");
       command.text("--adapter", o->adapter, "adapter folder of PEFT, which is added to the weights (hf)");
       command.text(
           "--precision", o->precision,
           "of the weights that are written (hf, diffusers): f32, f64, bf16, or file: as they are; merged weights are "
           "rounded to it");
       command.number("--shard-mib", o->shard_mib, "size of a weights file (hf, diffusers)", {1, 1 << 20});
       command.number("--shard-kib", o->shard_kib, "the same in KiB, where 1 MiB is too much (diffusers)",
                      {0, 1 << 30});
       command.text("--tokenizer", o->tokenizer, "CLIP merges file, where the model brings none");
       command.text("--step", o->step, "of a run: a checkpoint's step, newest or best");
       command.flag("--raw", o->raw, "of a run: the weights as trained, not their running average");
       return [o](const CommandLine&) { return export_model(*o); };
     }});

}  // namespace
}  // namespace trireme

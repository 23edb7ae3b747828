#include "framework/models/causal_lm_load.h"

#include "comm/error.h"
#include "framework/models/saved_run.h"

#include <filesystem>
#include <memory>

#include <ATen/ATen.h>

namespace trireme {
namespace {

bool is_run(const std::string& path) { return std::filesystem::is_directory(path + "/ckpt"); }

std::string run_text(const std::string& path, const std::string& name) {
  const auto text = saved_text(path + "/ckpt", "recipe/" + name);
  if (!text) throw DataError(path, "is no run of causal_lm", "give a Hugging Face folder or a run of causal_lm");
  return *text;
}

LmWeights of_run(const std::string& path, at::Device device, at::ScalarType type, const LmCheckpoint& checkpoint) {
  const auto run = std::make_shared<const SavedRun>(read_run(path, checkpoint.step, checkpoint.average));
  const auto text = run->text("lm_config");
  if (!text) throw DataError(path, "is no run of causal_lm", "give a Hugging Face folder or a run of causal_lm");
  const auto read = [=](const LmWeight& w) {
    const auto found = run->weights.find(w.name);
    if (found == run->weights.end() || found->second.sizes() != at::IntArrayRef(w.shape))
      throw DataError(run->snapshot.place, "lacks " + w.name + ", or it has another shape", "take another checkpoint");
    return found->second.to(device, type, false, true);
  };
  return {parse_causal_lm_config(*text, run->snapshot.place), read, at::TensorOptions(device).dtype(type)};
}

}  // namespace

LmWeights open_causal_lm(const std::string& path, at::Device device, std::optional<at::ScalarType> dtype,
                         const LmCheckpoint& checkpoint) {
  if (is_run(path)) return of_run(path, device, dtype.value_or(at::kFloat), checkpoint);
  if (checkpoint.step != "newest" || !checkpoint.average)
    throw UsageError(checkpoint.average ? "--step" : "--raw", "is for a run: " + path + " is none", "leave it out");
  return LmWeights::open(path, device, dtype);
}

CausalLm load_causal_lm(const std::string& path, at::Device device, std::optional<at::ScalarType> dtype,
                        const LmCheckpoint& checkpoint) {
  const LmWeights weights = open_causal_lm(path, device, dtype, checkpoint);
  return CausalLm(weights.config, weights.read);
}

BytePairTokenizer load_tokenizer(const std::string& path) {
  if (!is_run(path)) return BytePairTokenizer::read(path);
  return BytePairTokenizer::from_json(run_text(path, "tokenizer"), run_text(path, "tokenizer_config"), path);
}

void write_hf_folder(const std::string& folder, const CausalLm& model, std::int64_t file_bytes,
                     const std::string& from) {
  if (std::filesystem::exists(folder) && std::filesystem::equivalent(folder, from))
    throw UsageError(folder, "is the folder that is read", "choose another");
  HfWriter writer(folder, file_bytes);
  for (const auto& [w, value] : model.weights()) writer.add({w.name, w.transposed ? value.t() : value});
  if (is_run(from))
    load_tokenizer(from).save(folder);
  else
    copy_tokenizer(from, folder);
  writer.finish(print_causal_lm_config(model.config(), model.dtype()));
}

}  // namespace trireme

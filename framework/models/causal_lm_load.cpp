#include "framework/models/causal_lm_load.h"

#include "comm/error.h"
#include "data/file.h"
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

std::string config_file(const std::string& path) {
  return std::filesystem::is_directory(path) ? path + "/config.json" : path;
}

CausalLmConfig shape_of(const std::string& path) {
  const std::string file = config_file(path);
  if (!std::filesystem::is_regular_file(file))
    throw DataError(file, "is no file", "name a config.json of Hugging Face, or the folder that holds it");
  const auto bytes = read_file(file, 1 << 24);
  return parse_causal_lm_config({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, file);
}

// Of shapes alone: what would be beyond all memory is said before anything is drawn.
double numbers_of(const CausalLmConfig& config, const std::string& path) {
  double all = 0;
  (void)CausalLm(config, [&](const LmWeight& w) {
    double numbers = 1;
    for (const auto n : w.shape) numbers *= double(n);
    if ((all += numbers) > 0x1p46)
      throw DataError(path, "asks for a tensor " + w.name + " beyond all memory", "lower its sizes");
    return at::empty({0}, at::TensorOptions(at::kCPU).dtype(at::kFloat));
  });
  return all;
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

LmWeights draw_causal_lm(const std::string& path, std::uint64_t seed, at::Device device, at::ScalarType dtype) {
  const auto options = at::TensorOptions(device).dtype(dtype);
  CausalLmConfig config = shape_of(path);
  (void)numbers_of(config, path);
  return {std::move(config), [=](const LmWeight& w) { return drawn_weight(w, seed, options); }, options};
}

BytePairTokenizer tokenizer_of_shape(const std::string& path) {
  const std::string beside = std::filesystem::path(config_file(path)).parent_path() / "tokenizer.json";
  if (std::filesystem::exists(beside)) return BytePairTokenizer::read(beside);
  const std::string text = " the the";  // for the one merge that a tokenizer must have
  return BytePairTokenizer::train({&text, 1}, 260);
}

double drawn_numbers(const std::string& path) { return numbers_of(shape_of(path), path); }

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

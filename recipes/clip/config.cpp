#include "recipes/clip/config.h"

#include "data/image_text/split.h"

#include <algorithm>
#include <cmath>

namespace trireme::fastclip {

void DataConfig::fields(Fields& f) {
  f.resume_may_change(true);  // places: what lies there is compared
  f("file", file,
    "a set that `trireme data NAME` prepared at the model's image size; or a prepared file (.h5), WebDataset tars "
    "(shards/{00000..00041}.tar, their folder, a.tar::b.tar), a table of paths and captions (.csv, .tsv), or a folder "
    "of pictures with a .txt beside each (pictures/)");
  f("files", files, "several such sources, instead of file");
  f("eval_file", eval_file,
    "pairs to evaluate on, one such source; then all of the others is trained on; empty: captions that are held out");
  f("tokenizer", tokenizer,
    "CLIP merges file; empty: that of the run or OpenCLIP folder in init_from, else a BPE learnt from the captions");
  f.resume_may_change(false);
  f("weights", weights,
    "of each of files: times that each of its pairs occurs in an epoch, whole numbers; empty: once");
  f.require(weights.empty() || weights.size() == files.size(), "weights", "is not as long as files");
  f.require(std::all_of(weights.begin(), weights.end(), [](auto w) { return w >= 1 && w <= 1000; }), "weights",
            "holds a number outside 1 to 1000");
  f("held_out", held_out,
    "tars, tables and folders: share of the captions held out for evaluation, by hash, about 5,000 at most (prepared "
    "files have a split of their own)",
    {.min = 0, .max = 1});
  f("part", part,
    "[from, to], 0 to 1: only the training captions whose hash lies there; [0, 0.5] and [0.5, 1] are two halves");
  f("eval_part", eval_part,
    "part of the training captions to evaluate on in place of the held-out ones: settings are chosen on it");
  f.require(is_part(part), "part", "is not two ascending numbers from 0 to 1", "write [0, 0.5]");
  f.require(is_part(eval_part), "eval_part", "is not two ascending numbers from 0 to 1", "write [0.9, 1]");
  f.require(eval_part.empty() || !is_part(part) || !is_part(eval_part) || apart(part, eval_part), "eval_part",
            "has captions that are trained on", "leave them out of data.part");
  f.require(eval_part.empty() || eval_file.empty(), "eval_part", "and eval_file both say what to evaluate on",
            "leave one out");
  f("index_key", index_key, "tars: JSON member with the sample's own number (FastCLIP: key); empty: counted in order");
  f("image_column", image_column, "tables: column of the picture's path");
  f("caption_column", caption_column, "tables: column of the caption");
  f("max_per_caption", max_per_caption, "training images kept of one caption; 0 = all", {.min = 0});
  f("crop_scale", crop_scale,
    "random crops, of aspect ratios from 3/4 to 4/3, keep at least this share of the area; 1 = as in evaluation",
    {.min = 0.01, .max = 1});
  f("flip", flip, "chance of a mirror image", {.min = 0, .max = 1});
  f("keyword_dropout", keyword_dropout, "chance that a comma-separated part of a caption is left out",
    {.min = 0, .max = 1});
  f("dct_scaling", dct_scaling, "JPEGs may be decoded at 1/2, 1/4 or 1/8 where a crop keeps the model's pixels a side");
  f("broken_share", broken_share,
    "broken samples, counted and named, and left out or replaced by the next, are an error above this share",
    {.min = 0, .max = 1});
  f.resume_may_change(true);
  f("pairs", pairs, "for --dry-run where the data is not here: pairs that it will have (a training counts them)",
    {.min = 0});
  f("threads", threads, "threads that decode; 0 = all cores of a rank on a GPU, one on a CPU, which trains",
    {.min = 0, .max = 1024});
  f.resume_may_change(false);
}

LossConfig LossConfig::of_drrho() {
  LossConfig c;
  c.drrho = true;
  c.temperature = "const", c.u_domain = "log";
  c.tau = 0.01, c.eps = 1e-4, c.rho = 11, c.gamma_min = 0, c.lr_tau = 7.8125e-5;
  return c;
}

// DRRho-CLIP's README: gamma = min(1, 4.177 epochs^-0.7265), reached at the end.
double LossConfig::gamma_min_of(std::int64_t epochs) const {
  if (gamma_min > 0) return gamma_min;
  return drrho ? std::min(1.0, 4.177 * std::pow(double(std::max<std::int64_t>(epochs, 1)), -0.7265)) : 0.2;
}

std::int64_t LossConfig::decay_epochs_of(std::int64_t epochs) const {
  return gamma_decay_epochs ? gamma_decay_epochs : std::max<std::int64_t>(1, drrho ? epochs : epochs / 2);
}

void LossConfig::fields(Fields& f) {
  f.choice("name", name, {"rgclg", "gcl", "rgcl", "mbcl", "siglip"},
           "rgclg: FastCLIP v3; gcl: v0 (temperature global) and v1 (const); rgcl: v2 (individual); mbcl: OpenCLIP's "
           "mini-batch loss; siglip: a sigmoid a pair");
  f.choice("temperature", temperature, {"global", "const", "individual"},
           "one trained temperature; or a constant: tau, also after init_from; or one of each sample and side");
  f.choice("tau_gradient", tau_gradient, {"repo", "paper"},
           "rgclg: as the authors' code weighs it, or the exact derivative of the objective");
  f.choice("tau_weight", tau_weight, {"repo", "paper"},
           "rgcl: gradients over tau_i as in the authors' code, or those of the objective");
  f("tau_adam_sqrt", tau_adam_sqrt, "rgcl: Adam of the temperatures; off: without its root, as before 2024-10-03");
  f("tau", tau, "initial temperature; that of init_from is taken over, clamped, unless it is constant here",
    {.min = 1e-4, .max = 100});
  f("tau_min", tau_min, "temperature is clamped to this after every step", {.min = 1e-4, .max = 100});
  f("tau_max", tau_max, "upper end of that clamp", {.min = 1e-4, .max = 100});
  f("rho", rho, "rgclg, rgcl: weight of the temperature's penalty", {.min = 0});
  f("eps", eps, "added to the normaliser u", {.min = 1e-300});
  f("bias", bias, "siglip: initial bias of the logits", {.min = -1e4, .max = 1e4});
  f("weight", weight, "of the contrastive loss", {.min = 0});
  f.choice("estimator", estimator, {"moving_average", "scent", "none"},
           "of u: by gamma; by a rate of each sample, sigmoid(log u + scent_a); or the batch's alone");
  f("scent_a", scent_a, "scent: the constant of that rate", {.min = -100, .max = 100});
  f.choice("u_domain", u_domain, {"linear", "log"},
           "u as a mean over B - 1 with eps beside it (FastCLIP), or over B with eps inside (DRRho-CLIP)");
  f.choice("gamma_schedule", gamma_schedule, {"cosine", "constant"}, "weight of the new estimate of u, by epoch");
  f("gamma_min", gamma_min,
    drrho ? "gamma at the end of its schedule; 0: min(1, 4.177 epochs^-0.7265)"
          : "gamma at the end of its schedule; 0: 0.2",
    {.min = 0, .max = 1});
  f("gamma_decay_epochs", gamma_decay_epochs,
    drrho ? "epochs of the gamma schedule; 0 = all epochs" : "epochs of the gamma schedule; 0 = half of all epochs",
    {.min = 0});
  f("lr_tau", lr_tau, "learning rate of log(1/tau), or of tau itself (rgcl); negative: as the model's", {.max = 100});
  f.choice("lr_tau_schedule", lr_tau_schedule, {"step_thresh", "const", "cosine"},
           "step_thresh: a third of lr_tau while tau <= 0.03 (rgcl: const); no warm-up; cosine: as the model's");
  f("mask_same_caption", mask_same_caption, "pairs of the same caption are no negatives of each other");
  f.choice("reduction", reduction, {"scalars", "reduce_scatter"},
           "gradients of other ranks' rows: recovered from scalars of each sample, or sent (OpenCLIP's way)");
  f.choice("u_table", u_table, {"sharded", "replicated"},
           "entries of all samples: spread over ranks, or whole on each");
  f.require(tau_min <= tau && tau <= tau_max, "tau", "lies outside [tau_min, tau_max]", "change one of the three");
  f.require((name == "rgcl") == (temperature == "individual"), "temperature", "is " + temperature + " with " + name,
            "rgcl goes with individual, every other with global or const");
  f.require(name != "rgcl" || u_domain == "linear", "u_domain",
            "is log with rgcl, which keeps u over a bound of its own", "set u_domain: linear");
}

}  // namespace trireme::fastclip

#include "recipes/clip/config.h"

#include "data/image_text/split.h"

#include <algorithm>

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
  f("threads", threads, "threads that decode; 0 = all cores of a rank on a GPU, one on a CPU, which trains",
    {.min = 0, .max = 1024});
  f.resume_may_change(false);
}

void LossConfig::fields(Fields& f) {
  f.choice("name", name, {"rgclg", "gcl", "mbcl"},
           "rgclg: FastCLIP v3; gcl: v0 (temperature global) and v1 (const); mbcl: OpenCLIP's mini-batch loss");
  f.choice("temperature", temperature, {"global", "const"},
           "one trained temperature, or a constant: tau, also after init_from");
  f.choice("tau_gradient", tau_gradient, {"repo", "paper"},
           "rgclg: as the authors' code weighs it, or the exact derivative of the objective");
  f("tau", tau, "initial temperature; a trained one of init_from stays, clamped", {.min = 1e-4, .max = 100});
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

// Configuration of the recipes `fastclip` and `drrho_clip`.
#pragma once
#include "framework/models/clip.h"

namespace trireme::fastclip {

struct DataConfig {
  std::string file = "openclipart";
  std::vector<std::string> files;
  std::vector<std::int64_t> weights;
  std::string eval_file, index_key, image_column = "filepath", caption_column = "title";
  double held_out = 0.1;
  std::vector<double> part, eval_part;
  std::int64_t pairs = 0;
  std::string tokenizer;
  std::int64_t max_per_caption = 0;
  double crop_scale = 0.9, flip = 0, keyword_dropout = 0;
  std::int64_t threads = 0;
  bool dct_scaling = true;
  double broken_share = 0.01;
  void fields(Fields& f);
};

struct LossConfig {
  std::string name = "rgclg", temperature = "global", tau_gradient = "repo", tau_weight = "repo";
  bool tau_adam_sqrt = true;
  double tau = 0.07, tau_min = 0.01, tau_max = 1, rho = 6.5, eps = 1e-14, bias = -10, weight = 1;
  std::string estimator = "moving_average", u_domain = "linear", u_table = "sharded";
  double scent_a = 10;
  std::string gamma_schedule = "cosine";
  double gamma_min = 0.2;
  std::int64_t gamma_decay_epochs = 0;
  double lr_tau = 2e-4;
  std::string lr_tau_schedule = "step_thresh";
  std::string reduction = "scalars";
  bool mask_same_caption = false;
  bool drrho = false;  // whose defaults, and whose rules for gamma where it is 0

  static LossConfig of_drrho();
  void fields(Fields& f);
  bool global_loss() const { return name == "rgclg" || name == "gcl" || name == "rgcl"; }
  bool trains_tau() const { return temperature == "global"; }
  // What gamma_min and gamma_decay_epochs are in a run of so many epochs.
  double gamma_min_of(std::int64_t epochs) const;
  std::int64_t decay_epochs_of(std::int64_t epochs) const;
};

}  // namespace trireme::fastclip

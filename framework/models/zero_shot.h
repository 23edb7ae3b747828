// Classification by prompts: a class is the mean direction of its prompts' features, as open_clip and clip_benchmark do
// it.
#pragma once
#include "comm/communicator.h"

#include <map>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// Where the data has no templates of its own.
inline constexpr const char* plain_template = "a picture of {c}";

// Class by class the text of every template, its placeholder ({c} or {}) filled in. `where` names the templates in
// messages. DataError: no template, or one without a placeholder.
std::vector<std::string> prompts_of(std::span<const std::string> classes, std::span<const std::string> templates,
                                    const std::string& where);

// features [classes * templates, d], unit length, in that order -> [classes, d]: means, at unit length again.
at::Tensor class_features(const at::Tensor& features, std::int64_t templates);

// top1, top5 and top5_chance (from five classes on), mean_per_class (mean over the classes that occur of the share
// found first), chance (of top1 and mean_per_class); shares, 0 to 1. Equal scores: the lower class first. scores of
// class c: images [n, d] by classes [c, d]; labels [n]. Collective, as ranks_of. The names begin with `prefix`.
std::map<std::string, double> classification_metrics(Communicator& comm, const at::Tensor& images,
                                                     const at::Tensor& classes, std::span<const std::int64_t> labels,
                                                     const std::string& prefix = "zero_shot_");

}  // namespace trireme

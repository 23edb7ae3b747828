#include "framework/models/zero_shot.h"

#include "comm/error.h"
#include "framework/models/retrieval.h"

namespace trireme {

std::vector<std::string> prompts_of(std::span<const std::string> classes, std::span<const std::string> templates,
                                    const std::string& where) {
  if (templates.empty()) throw DataError(where, "holds no template", "write one a line, such as: a photo of a {c}.");
  std::vector<std::string> prompts;
  for (const std::string& name : classes)
    for (const std::string& form : templates) {
      std::string prompt;
      std::size_t from = 0, filled = 0;
      for (std::size_t at; (at = form.find('{', from)) != std::string::npos;) {
        const std::size_t length = form.compare(at, 2, "{}") == 0 ? 2 : form.compare(at, 3, "{c}") == 0 ? 3 : 0;
        prompt += form.substr(from, at - from) + (length ? name : "{");
        from = at + std::max<std::size_t>(1, length);
        filled += length > 0;
      }
      if (!filled) throw DataError(where, "'" + form + "' has no place for the class", "write {c} where its name goes");
      prompts.push_back(prompt + form.substr(from));
    }
  return prompts;
}

at::Tensor class_features(const at::Tensor& features, std::int64_t templates) {
  const at::Tensor mean = features.view({-1, templates, features.size(1)}).mean(1);
  return mean / mean.norm(2, {1}, true);
}

std::map<std::string, double> classification_metrics(Communicator& comm, const at::Tensor& images,
                                                     const at::Tensor& classes, std::span<const std::int64_t> labels,
                                                     const std::string& prefix) {
  Matches matches;
  for (std::size_t i = 0; i < labels.size(); ++i) matches.emplace_back(std::int64_t(i), labels[i]);
  const at::Tensor ranks = ranks_of(comm, {images, {}}, {classes, {}}, matches);
  std::map<std::int64_t, std::pair<std::int64_t, std::int64_t>> by_class;  // found first, of how many
  const std::int64_t* rank = ranks.const_data_ptr<std::int64_t>();
  for (std::size_t i = 0; i < labels.size(); ++i) {
    auto& [found, of] = by_class[labels[i]];
    found += rank[i] == 0;
    ++of;
  }
  double sum = 0;
  for (const auto& [label, count] : by_class) sum += double(count.first) / double(count.second);
  std::map<std::string, double> metrics{{prefix + "top1", recall_at(ranks, 1)},
                                        {prefix + "mean_per_class", sum / double(by_class.size())},
                                        {prefix + "chance", 1 / double(classes.size(0))}};
  if (classes.size(0) >= 5) {
    metrics[prefix + "top5"] = recall_at(ranks, 5);
    metrics[prefix + "top5_chance"] = 5 / double(classes.size(0));
  }
  return metrics;
}

}  // namespace trireme

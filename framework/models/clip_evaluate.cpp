#include "framework/models/clip_evaluate.h"

#include "framework/models/zero_shot.h"

namespace trireme {

ClipAnswers evaluate_clip(const ClipEncoder& encoder, const ClipQuestions& questions, Protocol protocol) {
  if (questions.images == 0) return {};
  ClipAnswers answers{encoder.images(questions.images, questions.pixels), {}};
  if (!questions.captions.empty()) {
    const RetrievalTask task = retrieval_task(protocol, questions.captions);
    answers.metrics =
        retrieval_metrics(encoder.comm(), protocol, task, answers.image_features, encoder.texts(task.texts));
  }
  if (std::int64_t(questions.prompts.size()) >= 2 * questions.templates) {
    const at::Tensor classes = class_features(encoder.texts(questions.prompts), questions.templates);
    answers.metrics.merge(classification_metrics(encoder.comm(), answers.image_features, classes, questions.labels));
  }
  return answers;
}

std::vector<std::string> templates_of(const Pairs& data) {
  std::vector<std::string> own = data.templates();
  return own.empty() ? std::vector<std::string>{plain_template} : own;
}

at::Tensor pair_features(const ClipEncoder& encoder, const Pairs& data, const ImageTextDataset& dataset,
                         std::span<const std::int64_t> ids, at::ScalarType type) {
  std::vector<std::string> captions;
  for (const auto id : ids) captions.push_back(data.caption(id));
  const at::Tensor images = encoder.images(std::int64_t(ids.size()), [&](std::int64_t first, std::int64_t m) {
    return dataset.pixels(ids.subspan(std::size_t(first), std::size_t(m)), type);
  });
  return at::stack({images, encoder.texts(captions)});
}

ClipQuestions questions_of(const Pairs& data, const ImageTextDataset& dataset, std::span<const std::int64_t> ids,
                           at::ScalarType type) {
  ClipQuestions all;
  all.images = std::int64_t(ids.size());
  all.pixels = [&dataset, type, ids = std::vector<std::int64_t>(ids.begin(), ids.end())](std::int64_t first,
                                                                                         std::int64_t m) {
    return dataset.pixels(std::span(ids).subspan(first, m), type);
  };
  std::map<std::int64_t, std::int64_t> class_of;  // number in the data -> among those that occur
  std::vector<std::string> classes;
  for (const auto id : ids) {
    all.captions.push_back({data.caption(id)});
    const std::int64_t cls = data.class_id(id);
    const auto [label, fresh] = class_of.emplace(cls, std::int64_t(classes.size()));
    if (fresh) classes.push_back(cls < 0 ? "something" : data.classes().at(cls));
    all.labels.push_back(label->second);
  }
  const auto templates = templates_of(data);
  all.templates = std::int64_t(templates.size());
  all.prompts = prompts_of(classes, templates, data.path());
  return all;
}

}  // namespace trireme

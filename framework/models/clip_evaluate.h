// Zero-shot retrieval and classification of a CLIP model on image-text pairs. Collective.
#pragma once
#include "data/image_text/image_text.h"
#include "framework/models/clip_features.h"
#include "framework/models/retrieval.h"

namespace trireme {

// What is evaluated; a part that is empty gives no metrics.
struct ClipQuestions {
  std::int64_t images = 0;
  ClipEncoder::Pixels pixels;
  std::vector<std::vector<std::string>> captions;  // of each image
  std::vector<std::int64_t> labels;                // class of each image
  std::vector<std::string> prompts;  // of each class its `templates` texts; a single class is nothing to tell apart
  std::int64_t templates = 1;
};

struct ClipAnswers {
  at::Tensor image_features;              // [images, d]
  std::map<std::string, double> metrics;  // retrieval_metrics and classification_metrics
};

ClipAnswers evaluate_clip(const ClipEncoder& encoder, const ClipQuestions& questions, Protocol protocol);

// Features [2, n, d] of the images and captions of these pairs, as evaluation sees them. Collective.
at::Tensor pair_features(const ClipEncoder& encoder, const Pairs& data, const ImageTextDataset& dataset,
                         std::span<const std::int64_t> ids, at::ScalarType type);

// Pairs of a data set as training evaluates them: captions of `ids`, and the classes that occur among them with
// templates_of(data). Pixels of `type`; `dataset` must outlive the questions.
std::vector<std::string> templates_of(const Pairs& data);  // its own, or plain_template
ClipQuestions questions_of(const Pairs& data, const ImageTextDataset& dataset, std::span<const std::int64_t> ids,
                           at::ScalarType type);

}  // namespace trireme

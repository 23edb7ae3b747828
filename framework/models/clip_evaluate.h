// Zero-shot retrieval and classification on held-out pairs. Collective: every rank encodes its part.
#pragma once
#include "comm/communicator.h"
#include "data/image_text/image_text.h"
#include "framework/models/clip.h"

namespace trireme::fastclip {

// Keys image_to_text_r1 / _r5 / _r10, text_to_image_..., chance_r1, chance_r10, text_to_image_chance_r10,
// zero_shot_top1, zero_shot_chance. Candidates of image-to-text are the distinct captions of `ids`; of text-to-image
// all their images, where any image of the caption is a hit. Classes are the folders that occur among `ids`.
std::map<std::string, double> evaluate_clip(Communicator& comm, const nn::Clip& model, bool fused,
                                            const Pairs& data, const ImageTextDataset& dataset,
                                            const Tokenizer& tokenizer, std::int64_t context,
                                            std::span<const std::int64_t> ids, at::Device device);

}  // namespace trireme::fastclip

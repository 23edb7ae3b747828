// How good an arm's pictures are, judged from its files.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace trireme::sample {

// Means over the pictures in `folder` (%05d.png, in the order of `prompts`) of what framework/metrics/scene_score reads
// off them. Empty where a prompt is no sentence of a scene or a side is below 48 pixels.
std::map<std::string, double> scene_scores(const std::vector<std::string>& prompts, const std::string& folder);

// Means of psnr (dB, at most 60: pictures have 8 bits) and ssim of the first `count` pictures in `folder` against those
// in `reference`. Empty where there are none or sizes differ.
std::map<std::string, double> fidelity(std::int64_t count, const std::string& folder, const std::string& reference);

}  // namespace trireme::sample

// How good an arm's pictures are, judged from its files.
#pragma once
#include <map>
#include <string>
#include <vector>

namespace trireme::sample {

// Means over the pictures in `folder` (%05d.png, in the order of `prompts`) of what framework/metrics/scene_score reads
// off them. Empty where a prompt is no sentence of a scene or a side is below 48 pixels.
std::map<std::string, double> scene_scores(const std::vector<std::string>& prompts, const std::string& folder);

}  // namespace trireme::sample

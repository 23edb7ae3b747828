// How good an arm's pictures are, judged from its files, on all cores of the machine.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace trireme::sample {

struct ScenePrompt {
  std::string text;
  std::uint64_t seed = 0;
};

struct ArmScores {
  // Means over pictures, and of videos over their frames, of what framework/metrics/scene_score reads off them, and
  // spectrum_distance: of a picture's texture to that of the scene as it is drawn at this size. Empty where a prompt is
  // no sentence of a scene or a side is below 48 pixels.
  std::map<std::string, double> mean;
  std::map<std::uint64_t, double> accuracy_by_seed;
};

// Of the pictures in `folder` (%05d.png, in the order of `prompts`).
ArmScores scene_scores(const std::vector<ScenePrompt>& prompts, const std::string& folder);

// Of the first `count` pictures in `folder`.
struct VideoScores {
  std::int64_t frames = 0;  // of one; 1: pictures that stand still
  double flicker = 0;       // mean of color_flicker
};
VideoScores video_scores(std::int64_t count, const std::string& folder);

// Means, over pictures and the frames of videos, of psnr (dB, at most 60: pictures have 8 bits), ssim and, where a side
// has 176 pixels for all its scales, ms_ssim of the first `count` pictures in `folder` against those in `reference`.
// Empty where there are none or sizes or numbers of frames differ.
std::map<std::string, double> fidelity(std::int64_t count, const std::string& folder, const std::string& reference);

}  // namespace trireme::sample

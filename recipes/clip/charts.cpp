#include "recipes/clip/charts.h"

namespace trireme::fastclip {

std::vector<MetricChart> clip_charts() {
  const auto recalls = [](const std::string& from) {
    return std::vector<std::string>{"eval/" + from + "_r1", "eval/" + from + "_r5", "eval/" + from + "_r10"};
  };
  return {{"Retrieval",
           {"R@1", "R@5", "R@10"},
           {{"image to text", recalls("image_to_text"), recalls("chance")},
            {"text to image", recalls("text_to_image"), recalls("text_to_image_chance")}},
           true},
          {"Zero-shot classification",
           {"top-1", "top-5", "per class"},
           {{"zero-shot",
             {"eval/zero_shot_top1", "eval/zero_shot_top5", "eval/zero_shot_mean_per_class"},
             {"eval/zero_shot_chance", "eval/zero_shot_top5_chance", "eval/zero_shot_chance"}}},
           true},
          {"Temperature τ", {}, {{"", {"tau"}, {}}}},
          {"Inner rate γ", {}, {{"", {"gamma"}, {}}}},
          {"Objective", {}, {{"", {"objective"}, {}}}},
          {"Mean of u", {}, {{"", {"u_mean"}, {}}}}};
}

}  // namespace trireme::fastclip

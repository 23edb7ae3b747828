#include "framework/metrics/utilisation.h"

#include <cctype>
#include <limits>

namespace trireme {
namespace {

struct Card {
  std::string_view name;       // in the driver's name
  double half, single, twice;  // dense TFLOP/s: bf16 and fp16 by tensor cores; f32; f64 (by tensor cores where they do)
};

// The vendor's data sheets, without sparsity. The longer name first where one begins with another.
constexpr Card cards[] = {
    {"GB200", 2500, 80, 40},         {"B200", 2250, 75, 37},       {"H200 NVL", 835, 60, 60},
    {"H200", 989.4, 66.9, 66.9},     {"GH200", 989.4, 66.9, 66.9}, {"H100 PCIe", 756, 51.2, 51.2},
    {"H100 NVL", 835, 60, 60},       {"H100", 989.4, 66.9, 66.9},  {"H800", 989.4, 66.9, 1},
    {"A100", 312, 19.5, 19.5},       {"A800", 312, 19.5, 19.5},    {"A40", 149.7, 37.4, 0.58},
    {"A30", 165, 10.3, 10.3},        {"A10", 125, 31.2, 0.49},     {"RTX A6000", 154.8, 38.7, 0.6},
    {"L40S", 362, 91.6, 1.43},       {"L40", 181, 90.5, 1.41},     {"L4", 121, 30.3, 0.47},
    {"RTX 4090", 165.2, 82.6, 1.29}, {"RTX 3090", 71, 35.6, 0.56}};

// Whole words of it alone: "RTX A4000" is no A40.
bool names(std::string_view device, std::string_view card) {
  const auto part_of_word = [&](std::size_t i) {
    return i < device.size() && std::isalnum(static_cast<unsigned char>(device[i]));
  };
  for (auto at = device.find(card); at != device.npos; at = device.find(card, at + 1))
    if ((at == 0 || !part_of_word(at - 1)) && !part_of_word(at + card.size())) return true;
  return false;
}

}  // namespace

double data_sheet_tflops(std::string_view device, std::string_view precision) {
  for (const Card& card : cards) {
    if (!names(device, card.name)) continue;
    return precision == "f64" ? card.twice : precision == "f32" ? card.single : card.half;
  }
  return 0;
}

Utilisation utilisation(double flops, double step_ms, int devices, double peak_tflops) {
  const double tflops = flops / (step_ms * 1e-3) / devices * 1e-12;
  return {tflops, peak_tflops > 0 ? tflops / peak_tflops : std::numeric_limits<double>::quiet_NaN()};
}

}  // namespace trireme

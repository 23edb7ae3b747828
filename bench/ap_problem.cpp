#include "bench/ap_problem.h"

#include "comm/error.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <sstream>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

struct Backbone {
  std::int64_t hidden, intermediate, layers, heads, kv_heads, vocab;
  at::ScalarType type;
  std::vector<std::int64_t> ranks;
};
const std::vector<std::int64_t> paper = {16, 32, 64, 128, 16, 32, 64, 128};
const std::map<std::string, Backbone> backbones = {
    {"70b", {8192, 28672, 80, 64, 8, 128256, at::kBFloat16, paper}},
    {"32b", {5120, 27648, 64, 40, 8, 152064, at::kBFloat16, paper}},
    {"8b", {4096, 14336, 32, 32, 8, 128256, at::kBFloat16, paper}},
    {"1b", {2048, 5632, 22, 32, 4, 32000, at::kBFloat16, paper}},
    {"lab", {256, 704, 8, 4, 2, 512, at::kFloat, {4, 8, 16, 32, 4, 8, 16, 32}}}};
constexpr std::array arms = {"ours",     "collective", "loop", "packed", "one job at a time",
                             "ours fp8", "pipeline",   "wide", "equal"};

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

CausalLmConfig config_of(const Backbone& b, int layers) {
  CausalLmConfig c;
  c.family = "llama";
  c.vocab = b.vocab, c.hidden = b.hidden, c.intermediate = b.intermediate, c.layers = layers > 0 ? layers : b.layers;
  c.heads = b.heads, c.kv_heads = b.kv_heads, c.head_dim = b.hidden / b.heads, c.eps = 1e-5;
  return c;
}

}  // namespace

ApProblem ap_problem(const std::string& text) {
  const auto wrong = [&](const std::string& why) {
    return UsageError("--problem", text.substr(0, 80) + ": " + why, "write for example 70b/8@4096:256x1,256x2:ours:20");
  };
  const auto parts = split(text, ':');
  char shape[9] = {};
  int layers = 0, tokens = 0;
  if (parts.size() < 2 || std::sscanf(parts[0].c_str(), "%8[a-z0-9]", shape) != 1 || !backbones.contains(shape))
    throw wrong("the shapes are 70b, 32b, 8b, 1b and lab");
  if (const auto slash = parts[0].find('/'); slash != std::string::npos) layers = std::atoi(&parts[0][slash + 1]);
  if (const auto at = parts[0].find('@'); at != std::string::npos) tokens = std::atoi(&parts[0][at + 1]);
  const Backbone& b = backbones.at(shape);
  ApProblem p;
  p.name = parts[0];
  p.jobs.model = config_of(b, layers);
  p.jobs.type = b.type;
  p.jobs.ranks = b.ranks;
  if (tokens > 0) p.jobs.pass_tokens = tokens;
  for (const auto& row : split(parts[1], ',')) {
    ApRow r;
    if (std::sscanf(row.c_str(), "%dx%d", &r.length, &r.batch) != 2 || r.length < 2 || r.batch < 1)
      throw wrong("'" + row + "' is no LENGTHxBATCH");
    p.rows.push_back(r);
  }
  if (p.rows.empty()) throw wrong("there is no row");
  for (const auto& arm : split(parts.size() > 2 ? parts[2] : "", ',')) {
    if (std::find(arms.begin(), arms.end(), arm) == arms.end())
      throw wrong("the arms are ours, collective, loop, packed, one job at a time, ours fp8, pipeline, wide and equal");
    p.arms.insert(arm);
  }
  if (parts.size() > 3 && (std::sscanf(parts[3].c_str(), "%lf", &p.seconds) != 1 || !(p.seconds > 0)))
    throw wrong("'" + parts[3] + "' are no seconds");
  return p;
}

}  // namespace trireme::bench

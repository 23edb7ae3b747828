#include "framework/report/run.h"

#include "comm/error.h"
#include "framework/io/file_io.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

constexpr const char* chart_key = "charts";
constexpr std::size_t max_text = 4 << 20;

std::string trimmed(std::string s) {
  const auto end = s.find_last_not_of(" \t\r");
  s.resize(end == s.npos ? 0 : end + 1);
  return s.substr(std::min(s.find_first_not_of(" \t"), s.size()));
}

// "key: value  # origin" to key and value, by hand: the printer of config.resolved.yaml writes nothing
// harder.
KeyValues flatten_yaml(const std::string& text) {
  KeyValues table;
  std::vector<std::pair<std::size_t, std::string>> parents;  // indentation and key
  std::size_t at = 0;
  while (at < text.size()) {
    const auto end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    at = end + 1;
    bool quoted = false;
    for (std::size_t i = 0; i < line.size(); ++i) {
      if (line[i] == '"') quoted = !quoted;
      if (line[i] == '#' && !quoted && i > 0 && line[i - 1] == ' ') line.resize(i);
    }
    const auto indent = line.find_first_not_of(' ');
    if (indent == line.npos || line[indent] == '#') continue;
    while (!parents.empty() && parents.back().first >= indent) parents.pop_back();
    const auto colon = line.find(':', indent);
    std::string path;
    for (const auto& [depth, key] : parents) path += key + ".";
    if (colon == line.npos) {
      table.emplace_back(path, trimmed(line));
      continue;
    }
    const std::string key = trimmed(line.substr(indent, colon - indent)), value = trimmed(line.substr(colon + 1));
    if (value.empty())
      parents.emplace_back(indent, key);
    else
      table.emplace_back(path + key, value);
  }
  return table;
}

void flatten_json(const nlohmann::json& json, const std::string& path, int depth, KeyValues& out) {
  const bool nested = json.is_object() || (json.is_array() && !json.empty() && json.front().is_structured());
  if (nested && depth < 8) {
    for (const auto& [key, value] : json.items())
      if (key != chart_key) flatten_json(value, path.empty() ? key : path + "." + key, depth + 1, out);
    return;
  }
  if (nested) return;
  if (json.is_array()) {
    std::string list;
    for (const auto& v : json)
      if (!v.is_structured())
        list +=
            (list.empty() ? "" : ", ") +
            (v.is_string() ? v.get<std::string>() : v.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
    out.emplace_back(path, list);
    return;
  }
  out.emplace_back(path, json.is_string() ? json.get<std::string>() : json.dump());
}

// The last that are there: a resumed run may have added to the file.
std::vector<MetricChart> find_charts(const nlohmann::json& json, int depth = 0) {
  std::vector<MetricChart> found;
  if (!json.is_structured() || depth > 8) return found;
  for (const auto& [key, value] : json.items()) {
    auto here = key == chart_key ? charts_from_json(value.dump()) : find_charts(value, depth + 1);
    if (!here.empty()) found = std::move(here);
  }
  return found;
}

std::string read_text(const std::string& path) {
  const auto bytes = read_whole(system_io(), path, max_text);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Run read_run(const std::string& dir) {
  Run run;
  auto path = std::filesystem::path(dir).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  run.name = path.filename() == "." ? std::filesystem::absolute(path).parent_path().filename() : path.filename();
  const auto tolerate = [&](const auto& read) {
    try {
      read();
    } catch (const Error& e) {
      run.notes.emplace_back(e.what());
    }
  };
  tolerate([&] {
    run.records = read_metrics(dir + "/metrics.jsonl");
    std::stable_sort(run.records.begin(), run.records.end(),
                     [](const Record& a, const Record& b) { return a.step < b.step; });
  });
  tolerate([&] { run.config = flatten_yaml(read_text(dir + "/config.resolved.yaml")); });
  tolerate([&] {
    const auto json = nlohmann::json::parse(read_text(dir + "/env.json"), nullptr, false);
    if (json.is_discarded()) throw DataError(dir + "/env.json", "not JSON");
    run.charts = find_charts(json);
    flatten_json(json, "", 0, run.environment);
  });
  return run;
}

}  // namespace

Curve Run::curve(const std::string& key) const {
  Curve c;
  for (const auto& r : records)
    if (const auto it = r.values.find(key); it != r.values.end() && std::isfinite(it->second)) {
      c.x.push_back(double(r.step));
      c.y.push_back(it->second);
    }
  return c;
}

std::vector<std::string> Run::keys(const std::string& prefix) const {
  std::set<std::string> found;
  for (const auto& r : records)
    for (const auto& [key, value] : r.values)
      if (key.starts_with(prefix) && std::isfinite(value)) found.insert(key);
  return {found.begin(), found.end()};
}

std::optional<double> Run::last(const std::string& key) const {
  const Curve c = curve(key);
  return c.empty() ? std::nullopt : std::optional(c.y.back());
}

std::optional<double> Run::median(const std::string& key) const {
  Curve c = curve(key);
  if (c.empty()) return {};
  const auto begin = c.y.begin() + std::ptrdiff_t(c.y.size() / 10);
  const auto middle = begin + (c.y.end() - begin) / 2;
  std::nth_element(begin, middle, c.y.end());
  return *middle;
}

std::vector<Run> read_runs(const std::vector<std::string>& run_dirs) {
  std::vector<Run> runs;
  std::map<std::string, int> used;
  for (const auto& dir : run_dirs) {
    runs.push_back(read_run(dir));
    auto& name = runs.back().name;
    if (const int n = used[name]++) name += " (" + std::to_string(n + 1) + ")";
  }
  return runs;
}

std::string find_value(const KeyValues& table, const std::vector<std::string>& keys) {
  for (const auto& wanted : keys)
    for (const auto& [key, value] : table)
      if (key == wanted || key.ends_with("." + wanted)) return value;
  return {};
}

// Means of stretches: what is drawn has no more than a point a pixel.
static Curve averaged(const Curve& c, std::size_t points) {
  if (c.x.size() <= points) return c;
  Curve out;
  for (std::size_t s = 0; s < points; ++s) {
    const auto begin = s * c.x.size() / points, end = (s + 1) * c.x.size() / points;
    double x = 0, y = 0;
    for (auto i = begin; i < end; ++i) {
      x += c.x[i] / double(end - begin);
      y += c.y[i] / double(end - begin);
    }
    out.x.push_back(x);
    out.y.push_back(y);
  }
  return out;
}

Curve smoothed(const Curve& all) {
  const Curve c = averaged(all, 1000);
  Curve out = c;
  const auto n = std::ptrdiff_t(c.y.size());
  const std::ptrdiff_t half = n / 40;
  for (std::ptrdiff_t i = 0; i < n; ++i) {
    // A weighted straight line: at the ends, where the window is one-sided, a mean would lag behind a slope.
    double w0 = 0, w1 = 0, w2 = 0, y0 = 0, y1 = 0;
    for (auto j = std::max<std::ptrdiff_t>(i - half, 0); j <= std::min(i + half, n - 1); ++j) {
      const double w = double(half + 1 - std::abs(j - i)), d = double(j - i), y = c.y[std::size_t(j)];
      w0 += w;
      w1 += w * d;
      w2 += w * d * d;
      y0 += w * y;
      y1 += w * d * y;
    }
    const double det = w0 * w2 - w1 * w1;
    out.y[std::size_t(i)] = det > 0 ? (w2 * y0 - w1 * y1) / det : y0 / w0;
  }
  return out;
}

Curve thinned(const Curve& c, std::size_t points) {
  if (c.x.size() <= points) return c;
  Curve out;
  const std::size_t stretches = std::max<std::size_t>(points / 2, 1);
  for (std::size_t s = 0; s < stretches; ++s) {
    const auto begin = s * c.y.size() / stretches, end = (s + 1) * c.y.size() / stretches;
    const auto [low, high] =
        std::minmax_element(c.y.begin() + std::ptrdiff_t(begin), c.y.begin() + std::ptrdiff_t(end));
    auto a = std::size_t(low - c.y.begin()), b = std::size_t(high - c.y.begin());
    if (a > b) std::swap(a, b);
    for (auto i : {a, b}) {
      if (!out.x.empty() && out.x.back() == c.x[i]) continue;
      out.x.push_back(c.x[i]);
      out.y.push_back(c.y[i]);
    }
  }
  return out;
}

}  // namespace trireme

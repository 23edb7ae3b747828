#include "trainers/sample/report.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/write_png.h"
#include "framework/io/file_io.h"
#include "framework/report/chart.h"
#include "framework/report/page.h"
#include "trainers/sample/frames.h"
#include "trainers/sample/scores.h"
#include "trainers/sample/sheet.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <numeric>

#include <nlohmann/json.hpp>

namespace trireme::sample {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t sheet_columns = 12;

std::string picture_path(const std::string& folder, std::int64_t index, const std::string& kind = "") {
  char name[32];
  std::snprintf(name, sizeof name, "/%05lld", static_cast<long long>(index));
  return folder + name + kind + ".png";
}

std::string number(double v, const char* format = "%.1f") {
  char text[32];
  std::snprintf(text, sizeof text, format, v);
  return text;
}

// Names of the maps that lie beside picture `index`.
std::vector<std::string> maps_of(const std::string& folder, std::int64_t index) {
  const std::string begin = fs::path(picture_path("", index)).stem().string().substr(0, 5) + ".";
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(begin) && name.ends_with(".png") && name.size() > begin.size() + 3)
      names.push_back("." + name.substr(begin.size(), name.size() - begin.size() - 4));
  }
  std::sort(names.begin(), names.end());
  return names;
}

SheetRow row_of(const std::string& title, const std::string& folder, std::int64_t pictures, const std::string& kind) {
  SheetRow row{title, {}};
  for (std::int64_t i = 0; i < std::min(pictures, sheet_columns); ++i)
    row.pictures.push_back(FramesOf(picture_path(folder, i, kind)).picture(0));
  return row;
}

SheetRow last_frames(const std::string& arm, const std::string& folder, std::int64_t pictures) {
  SheetRow row{arm + "\nlast frame", {}};
  for (std::int64_t i = 0; i < std::min(pictures, sheet_columns); ++i) {
    const FramesOf frames(picture_path(folder, i));
    row.pictures.push_back(frames.picture(frames.size() - 1));
  }
  return row;
}

// Metrics that stand beside the pictures.
constexpr struct {
  const char *name, *word, *beside, *line;  // formats: beside the pictures, on the terminal
} headlines[] = {{"attribute_accuracy", "accuracy", "%.2f", "%.3f"},
                 {"duplicates", "duplicates", "%.2f", "%.3f"},
                 {"psnr", "PSNR", "%.2f", "%.3f"},
                 {"color_flicker", "flicker", "%.4f", "%.4f"}};

std::string caption(const nlohmann::json& arm) {
  std::string text = arm["arm"].get<std::string>() + "\n" + std::to_string(arm["size"][1].get<std::int64_t>()) + "x" +
                     std::to_string(arm["size"][0].get<std::int64_t>()) + ", " +
                     std::to_string(arm["steps"].get<std::int64_t>()) + " steps\n" +
                     number(arm["step_ms"].get<double>()) + " ms a step";
  for (const auto& h : headlines)
    if (arm["metrics"].contains(h.name))
      text += "\n" + std::string(h.word) + " " + number(arm["metrics"][h.name], h.beside);
  if (arm.contains("judged_frames")) text += "\n(means of " + arm["judged_frames"].dump() + " frames)";
  return text;
}

bool write_sheet(const SampleJob& job, const nlohmann::json& arms, const std::string& out) {
  Sheet sheet;
  sheet.title = fs::path(out).filename().string();
  for (std::size_t a = 0; a < job.arms.size(); ++a) {
    const std::string folder = out + "/" + job.arms[a].arm;
    const auto pictures = std::int64_t(arms[a]["pictures"].size());
    if (!fs::exists(picture_path(folder, 0))) continue;
    sheet.rows.push_back(row_of(caption(arms[a]), folder, pictures, ""));
    if (arms[a].contains("judged_frames")) sheet.rows.push_back(last_frames(job.arms[a].arm, folder, pictures));
    for (const auto& kind : maps_of(folder, 0))
      sheet.rows.push_back(row_of(job.arms[a].arm + "\n" + kind.substr(1), folder, pictures, kind));
    if (!sheet.columns.empty()) continue;
    for (std::int64_t i = 0; i < std::min(pictures, sheet_columns); ++i)
      sheet.columns.push_back(arms[a]["pictures"][std::size_t(i)]["prompt"]);
  }
  if (sheet.rows.empty()) return false;
  const Image image = draw_sheet(sheet);
  const auto png = encode_png(std::span(&image, 1), {{"Software", "Trireme " TRIREME_VERSION}});
  replace_durably(system_io(), out + "/sheet.png", {reinterpret_cast<const char*>(png.data()), png.size()});
  return true;
}

std::string pictures_section(const nlohmann::json& arm, const SampleConfig& config, const std::string& out) {
  std::string html = "<p>";
  for (const auto& p : arm["pictures"]) {
    const std::string path = picture_path(config.arm, p["index"]);
    if (!fs::exists(out + "/" + path)) continue;
    html += "<img loading=\"lazy\" style=\"width:160px;image-rendering:pixelated;margin:2px\" src=\"" +
            escape_html(path) + "\" title=\"" + escape_html(p["prompt"].get<std::string>()) + ", seed " +
            std::to_string(p["seed"].get<std::uint64_t>()) + "\">";
  }
  return html + "</p>";
}

Chart series_chart(const nlohmann::json& arm, const std::string& name) {
  Chart chart;
  chart.title = arm["arm"].get<std::string>() + ": " + name;
  chart.from_zero = true;
  chart.height = 160;
  Series series{"", "var(--c0)", {}};
  const auto& values = arm["series"][name];
  for (std::size_t i = 0; i < values.size(); ++i) {
    series.curve.x.push_back(double(i));
    series.curve.y.push_back(values[i].get<double>());
  }
  chart.series.push_back(std::move(series));
  return chart;
}

void write_page(const SampleJob& job, const nlohmann::json& report, const std::string& out, bool sheet) {
  std::string html = page_begin("Samples: " + fs::path(out).filename().string());
  KeyValues rows;
  for (const auto& arm : report["arms"]) {
    std::string text = caption(arm);
    std::replace(text.begin(), text.end(), '\n', ',');
    rows.emplace_back(arm["arm"].get<std::string>(), text);
  }
  html += html_table(rows, "Arm", "What it took");
  if (sheet) html += "<p><img src=\"sheet.png\" style=\"max-width:100%\" alt=\"contact sheet\"></p>";
  for (std::size_t a = 0; a < job.arms.size(); ++a) {
    const auto& arm = report["arms"][a];
    html += "<h2>" + escape_html(job.arms[a].arm) + "</h2>" + pictures_section(arm, job.arms[a], out);
    for (const auto& [name, values] : arm["series"].items()) html += line_chart(series_chart(arm, name));
    html += details("Settings", "<pre>" + escape_html(job.arms[a].settings) + "</pre>");
    if (!arm["batches"].empty() && !arm["batches"][0]["report"].empty())
      html += details("Method", "<pre>" + escape_html(arm["batches"][0]["report"].dump(1)) + "</pre>");
  }
  replace_durably(system_io(), out + "/report.html", html + page_end());
}

}  // namespace

nlohmann::json arm_report(const SampleConfig& config, const std::string& folder) {
  nlohmann::json arm{{"arm", config.arm},
                     {"method", config.method},
                     {"size", config.size},
                     {"steps", config.steps},
                     {"metrics", nlohmann::json::object()},
                     {"series", nlohmann::json::object()}};
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (const std::string name = entry.path().filename().string();
        name.starts_with("batch_") && name.ends_with(".json"))
      files.push_back(entry.path().string());
  std::sort(files.begin(), files.end());
  double seconds = 0, timed = 0, steps = 0;
  auto& pictures = arm["pictures"] = nlohmann::json::array();
  auto& batches = arm["batches"] = nlohmann::json::array();
  for (const auto& file : files) {
    const auto bytes = read_file(file, 1 << 26);
    const auto batch = nlohmann::json::parse(bytes.begin(), bytes.end(), nullptr, false);
    if (!batch.is_object() || !batch.contains("pictures") || !batch.contains("series"))
      throw DataError(file, "is not what a batch ends with", "remove it: its pictures are drawn again");
    if (batch["pictures"].empty() || batch["pictures"][0]["index"] != pictures.size()) break;  // a stopped job's gap
    // The first batch also warms up: it counts only where it is alone.
    if (batches.size() == 1) timed = steps = 0;
    seconds += batch["seconds"].get<double>();
    timed += batch["seconds"].get<double>(), steps += batch["steps"].get<double>();
    for (const auto& p : batch["pictures"]) pictures.push_back(p);
    if (batches.empty()) arm["series"] = batch["series"];
    batches.push_back(batch);
  }
  std::vector<ScenePrompt> prompts;
  for (const auto& p : pictures) prompts.push_back({p["prompt"], p["seed"]});
  if (fs::exists(picture_path(folder, 0))) {
    const ArmScores scores = scene_scores(prompts, folder);
    arm["metrics"] = scores.mean;
    if (config.frames > 1) {
      const VideoScores video = video_scores(std::ssize(pictures), folder);
      arm["judged_frames"] = video.frames;  // of each video: all
      arm["metrics"]["color_flicker"] = video.flicker;
    }
    for (const auto& [seed, value] : scores.accuracy_by_seed) arm["accuracy_by_seed"][std::to_string(seed)] = value;
  }
  arm["seconds"] = seconds;
  arm["step_ms"] = steps > 0 ? 1000 * timed / steps : 0;
  return arm;
}

std::string write_report(const SampleJob& job, const std::string& out, const nlohmann::json& machine) {
  nlohmann::json report{{"machine", machine}, {"arms", nlohmann::json::array()}};
  std::string text;
  std::map<std::string, std::int64_t> pictures;
  for (const auto& config : job.arms) {
    report["arms"].push_back(arm_report(config, out + "/" + config.arm));
    pictures[config.arm] = std::ssize(report["arms"].back()["pictures"]);
  }
  for (std::size_t a = 0; a < job.arms.size(); ++a) {
    const auto& config = job.arms[a];
    auto& arm = report["arms"][a];
    if (!config.compare_to.empty() && config.arm != config.compare_to)
      for (const auto& [name, value] : fidelity(std::min(pictures[config.arm], pictures[config.compare_to]),
                                                out + "/" + config.arm, out + "/" + config.compare_to))
        arm["metrics"][name] = value;
    text += config.arm + ": " + std::to_string(arm["pictures"].size()) + " pictures, " +
            number(arm["seconds"].get<double>(), "%.2f") + " s, " + number(arm["step_ms"].get<double>()) + " ms a step";
    for (const auto& h : headlines)
      if (arm["metrics"].contains(h.name))
        text += ", " + std::string(h.word) + " " + number(arm["metrics"][h.name], h.line);
    if (arm.contains("judged_frames")) text += " (means of " + arm["judged_frames"].dump() + " frames)";
    text += "\n";
  }
  if (const double peak = machine.value("peak_gib", 0.0); peak > 0) text += "peak " + number(peak, "%.2f") + " GiB\n";
  const bool sheet = write_sheet(job, report["arms"], out);
  replace_durably(system_io(), out + "/report.json",
                  report.dump(1, ' ', false, nlohmann::json::error_handler_t::replace));
  write_page(job, report, out, sheet);
  return text + (sheet ? "sheet: " + out + "/sheet.png\n" : "") + "report: " + out + "/report.html\n";
}

}  // namespace trireme::sample

// What tasks end with: result.json, the table and the page.
#include "comm/error.h"
#include "data/json.h"
#include "framework/io/file_io.h"
#include "framework/report/chart.h"
#include "framework/report/gantt.h"
#include "framework/report/page.h"
#include "trainers/sweep/run.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numeric>

namespace trireme::sweep {
namespace {

using nlohmann::ordered_json;

std::string text(const char* format, auto... values) {
  char line[256];
  std::snprintf(line, sizeof line, format, values...);
  return line;
}

std::string loss_text(double loss) { return std::isfinite(loss) ? text("%.4f", loss) : "-"; }

std::vector<std::size_t> best_first(const TaskOutcome& o) {
  std::vector<std::size_t> order(o.jobs.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](std::size_t i) {
    const std::string& end = o.jobs[i].end;
    const bool counts = end == "done" || end == "overfitting" || end == "under way";
    return std::pair(!counts, o.jobs[i].best);
  };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return key(a) < key(b); });
  return order;
}

ordered_json or_null(double v) { return std::isfinite(v) ? ordered_json(v) : ordered_json(); }

double saved(const TaskOutcome& o) { return o.all_samples ? 1 - double(o.samples) / double(o.all_samples) : 0; }

// Validation losses by job, from losses.jsonl; against the share of the job's steps.
std::vector<Series> curves(const std::string& file, const TaskOutcome& o) {
  std::map<std::string, std::size_t> index;
  std::vector<Series> series;
  for (const auto& j : o.jobs) {
    index[j.candidate.job] = series.size();
    const bool won = o.winner == std::int64_t(series.size());
    series.push_back({won ? j.candidate.job : "",
                      won                      ? "var(--c0)"
                      : j.end == "diverging"   ? "var(--c3)"
                      : j.end == "overfitting" ? "var(--c1)"
                                               : "var(--muted)",
                      {},
                      won ? Series::line : Series::faint});
  }
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const auto v = parse_json(line);
    if (!v.is_object() || !v.contains("val_loss") || !v["val_loss"].is_number() || !v.contains("job")) continue;
    const auto found = index.find(v["job"].get<std::string>());
    if (found == index.end()) continue;
    Curve& c = series[found->second].curve;
    c.x.push_back(100.0 * v["step"].get<double>() / double(o.jobs[found->second].total_steps));
    c.y.push_back(v["val_loss"].get<double>());
  }
  std::erase_if(series, [](const Series& s) { return s.curve.empty(); });
  return series;
}

std::string section(const std::string& folder, const TaskConfig& task, const TaskOutcome& o) {
  Chart chart;
  chart.title = "validation loss over the share of a job's steps (%)";
  chart.series = curves(folder + "/" + task.name + "/losses.jsonl", o);
  std::map<std::string, int> ends;
  for (const auto& j : o.jobs) ++ends[j.end];
  const bool over = !o.winner_folder.empty() || o.seconds > 0;
  KeyValues summary{{"jobs", std::to_string(o.jobs.size())}};
  if (!over) summary.push_back({"state", "not over"});
  for (const auto& [end, n] : ends) summary.push_back({end, std::to_string(n)});
  summary.push_back({over ? "samples saved by early exit" : "samples saved by early exit so far",
                     format_value(saved(o), Unit::percent)});
  if (over) summary.push_back({"time", text("%.1f s, %.1f s of it evaluation", o.seconds, o.evaluation_seconds)});
  if (o.memory_peak > 0)
    summary.push_back({"memory", text("%.2f GB reserved at the most, %.2f GB forecast", o.memory_peak / 1e9,
                                      o.memory_forecast / 1e9)});
  if (over) summary.push_back({"passes without work", format_value(o.empty_share, Unit::percent)});
  if (o.gathers)
    summary.push_back({"layers gathered",
                       text("%lld, %.1f MB received by a rank", (long long)o.gathers, double(o.gathered_bytes) / 1e6)});
  const std::string best = o.winner < 0 ? "none" : o.jobs[std::size_t(o.winner)].candidate.job;
  const bool won = over && o.winner >= 0;
  summary.push_back({over ? "winner" : "best so far", won ? best + " in " + o.winner_folder : best});
  if (std::isfinite(o.exact_match))
    summary.push_back({"questions the winner answers", format_value(o.exact_match, Unit::percent)});
  KeyValues jobs;
  for (const auto i : best_first(o)) {
    const auto& j = o.jobs[i];
    std::string line = text("%s, %s after %lld of %lld steps", loss_text(j.best).c_str(), j.end.c_str(),
                            (long long)j.steps, (long long)j.total_steps);
    if (std::isfinite(j.exact_match)) line += ", answers " + format_value(j.exact_match, Unit::percent);
    jobs.push_back({j.candidate.job, line});
  }
  return "<h2>" + escape_html(task.name) + "</h2>" + html_table(summary, "", "") +
         figure("wide", chart.title, "", line_chart(chart)) +
         details("jobs", html_table(jobs, "job", "best validation loss"));
}

}  // namespace

std::string print_outcome(const TaskOutcome& o, const TaskConfig& task) {
  ordered_json all{{"task", task.name},
                   {"winner", o.winner},
                   {"winner_folder", o.winner_folder},
                   {"exact_match", or_null(o.exact_match)},
                   {"samples", o.samples},
                   {"all_samples", o.all_samples},
                   {"seconds", o.seconds},
                   {"evaluation_seconds", o.evaluation_seconds},
                   {"evaluation_ratio", o.evaluation_ratio},
                   {"empty_share", o.empty_share},
                   {"memory_forecast", o.memory_forecast},
                   {"memory_peak", o.memory_peak},
                   {"moves_between_ranks", o.moves_between_ranks},
                   {"gathers", o.gathers},
                   {"gathered_bytes", o.gathered_bytes},
                   {"jobs", ordered_json::array()}};
  for (const auto& j : o.jobs)
    all["jobs"].push_back({{"job", j.candidate.job},
                           {"lr", j.candidate.lr},
                           {"rank", j.candidate.rank},
                           {"batch_size", j.candidate.batch_size},
                           {"alpha", j.candidate.alpha},
                           {"end", j.end},
                           {"steps", j.steps},
                           {"total_steps", j.total_steps},
                           {"seconds", j.seconds},
                           {"best", or_null(j.best)},
                           {"exact_match", or_null(j.exact_match)}});
  return all.dump(1) + "\n";
}

TaskOutcome parse_outcome(const std::string& json, const std::string& place) {
  const auto all = parse_json(json);
  TaskOutcome o;
  try {
    o.winner = all.at("winner").get<std::int64_t>();
    o.winner_folder = all.at("winner_folder").get<std::string>();
    if (all.contains("exact_match") && all.at("exact_match").is_number())
      o.exact_match = all.at("exact_match").get<double>();
    o.samples = all.at("samples").get<std::int64_t>();
    o.all_samples = all.at("all_samples").get<std::int64_t>();
    o.seconds = all.at("seconds").get<double>();
    o.evaluation_seconds = all.at("evaluation_seconds").get<double>();
    o.evaluation_ratio = all.at("evaluation_ratio").get<double>();
    o.memory_forecast = all.value("memory_forecast", 0.0);
    o.memory_peak = all.value("memory_peak", 0.0);
    o.empty_share = all.at("empty_share").get<double>();
    o.moves_between_ranks = all.at("moves_between_ranks").get<std::int64_t>();
    o.gathers = all.at("gathers").get<std::int64_t>();
    o.gathered_bytes = all.at("gathered_bytes").get<std::int64_t>();
    for (const auto& j : all.at("jobs")) {
      const Candidate c{j.at("job").get<std::string>(), j.at("lr").get<double>(), j.at("alpha").get<double>(),
                        j.at("rank").get<std::int64_t>(), j.at("batch_size").get<std::int64_t>()};
      const double best = j.at("best").is_null() ? std::numeric_limits<double>::infinity() : j.at("best").get<double>();
      JobOutcome job{c,
                     j.at("end").get<std::string>(),
                     j.at("steps").get<std::int64_t>(),
                     j.at("total_steps").get<std::int64_t>(),
                     best,
                     j.value("seconds", 0.0)};
      if (j.contains("exact_match") && j.at("exact_match").is_number())
        job.exact_match = j.at("exact_match").get<double>();
      o.jobs.push_back(std::move(job));
    }
  } catch (const nlohmann::json::exception&) {
    throw DataError(place, "is no result of a task", "remove it: the task goes on from its checkpoint");
  }
  return o;
}

std::string outcome_table(const TaskOutcome& o, const TaskConfig& task) {
  std::size_t widest = 3;
  for (const auto& j : o.jobs) widest = std::max(widest, j.candidate.job.size());
  const bool asked = std::isfinite(o.exact_match);
  std::string table =
      "task " + task.name + "\n" +
      text("%-*s %10s %s%12s  %s\n", int(widest), "job", "best loss", asked ? "exact match " : "", "steps", "end");
  for (const auto i : best_first(o)) {
    const auto& j = o.jobs[i];
    const std::string match = !asked                         ? ""
                              : std::isfinite(j.exact_match) ? text("%9.1f %% ", 100 * j.exact_match)
                                                             : text("%11s ", "");
    table += text("%-*s %10s %s%5lld/%-6lld  %s%s\n", int(widest), j.candidate.job.c_str(), loss_text(j.best).c_str(),
                  match.c_str(), (long long)j.steps, (long long)j.total_steps, j.end.c_str(),
                  o.winner == std::int64_t(i) ? "  <- winner" : "");
  }
  table += text("%.1f %% of samples saved, %.1f s, %.1f s of it evaluation\n", 100 * saved(o), o.seconds,
                o.evaluation_seconds);
  if (o.winner < 0) return table + "no job has a result\n";
  if (asked) table += text("the winner answers %.1f %% of the questions\n", 100 * o.exact_match);
  return table + "winner: " + o.winner_folder + "\n";
}

void write_page(const std::string& folder, const SweepConfig& sweep, const std::vector<TaskConfig>& tasks,
                const std::vector<TaskOutcome>& outcomes, const std::string& out_file) {
  std::string page = page_begin("sweep " + folder) + schedule_section(folder);
  if (sweep.weights == "random")
    page += "<p>The backbone's weights were drawn (weights: random): times tell something here, losses nothing.</p>";
  for (std::size_t i = 0; i < outcomes.size(); ++i) page += section(folder, tasks[i], outcomes[i]);
  page += details("configuration", "<pre>" + escape_html(sweep.resolved) + "</pre>") + page_end();
  replace_durably(system_io(), out_file, page);
}

}  // namespace trireme::sweep

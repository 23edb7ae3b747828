#include "trainers/sweep/cluster/journal.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/json.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

namespace trireme::cluster {
namespace {

std::string path_of(const std::string& run_dir) { return run_dir + "/schedule.jsonl"; }

nlohmann::json bar(const GanttBar& b) {
  return {{"task", b.task}, {"gpus", b.gpus}, {"start", b.start}, {"end", b.end}, {"after_cut", b.after_cut}};
}

Unfinished& find(std::vector<Unfinished>& all, const std::string& task) {
  const auto it = std::find_if(all.begin(), all.end(), [&](const Unfinished& u) { return u.task.name == task; });
  if (it == all.end()) throw DataError(task, "never arrived");
  return *it;
}

struct Reader {
  Recovered found;
  std::map<std::string, double> since;  // start or cut of what runs

  void take(const nlohmann::json& line) {
    found.t = line.at("t");
    const std::string event = line.at("event");
    if (event == "begin") {
      for (auto& f : found.failed) found.unfinished.push_back(f.task);
      found.failed.clear();
    }
    if (event == "arrive") {
      const Task task{line.at("task"), line.at("gpus"), line.at("seconds")};
      found.unfinished.push_back({task, line.at("text")});
      found.tasks.insert(task.name), found.letters.insert(line.at("letter").get<std::string>());
    } else if (event == "start" || event == "cut") {
      Unfinished& u = find(found.unfinished, line.at("task"));
      u.started = true;
      u.task.gpus = int(line.at("gpus").size());
      since[u.task.name] = found.t;
      if (event == "cut") u.after_cut = true, u.task.seconds = line.at("remaining");
    } else if (event == "measured") {
      Unfinished& u = find(found.unfinished, line.at("task"));
      u.task.seconds = line.at("remaining"), since[u.task.name] = found.t;
    } else if (event == "done" || event == "failed") {
      const Unfinished& u = find(found.unfinished, line.at("task"));
      since.erase(u.task.name);
      if (event == "done")
        found.done.push_back(u);
      else
        found.failed.push_back({u, {ExitCode(line.at("code").get<int>()), line.at("why").get<std::string>()}});
      found.unfinished.erase(found.unfinished.begin() + (&u - found.unfinished.data()));
    }
    if (event == "stop") settle();
  }
  // Time that passed is taken off what is left; a twentieth of it always is.
  void settle() {
    for (auto& u : found.unfinished)
      if (const auto it = since.find(u.task.name); it != since.end())
        u.task.seconds = std::max(u.task.seconds - (found.t - it->second), 0.05 * u.task.seconds);
    since.clear();
  }
};

}  // namespace

Journal::Journal(const std::string& run_dir) : file_(path_of(run_dir)) {}

void Journal::write(double t, const char* event, nlohmann::json line) {
  line["t"] = t, line["event"] = event;
  file_.write(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

void Journal::begin(double t, int gpus) { write(t, "begin", {{"gpus", gpus}}); }

void Journal::arrive(double t, const Task& task, const std::string& text, const std::string& letter) {
  write(t, "arrive",
        {{"task", task.name}, {"gpus", task.gpus}, {"seconds", task.seconds}, {"text", text}, {"letter", letter}});
  file_.sync();
}

void Journal::plan(double t, bool arrived, const Plan& plan, const std::vector<GanttBar>& bars) {
  nlohmann::json all = nlohmann::json::array();
  for (const auto& b : bars) all.push_back(bar(b));
  write(t, "plan",
        {{"arrived", arrived},
         {"makespan", t + plan.makespan},
         {"bound", t + plan.bound},
         {"optimal", plan.optimal},
         {"by", plan.by},
         {"bars", all}});
}

void Journal::start(double t, const Start& s, bool after_cut) {
  write(t, "start", {{"task", s.task}, {"gpus", s.gpus}, {"after_cut", after_cut}});
}

void Journal::measured(double t, const std::string& task, double remaining) {
  write(t, "measured", {{"task", task}, {"remaining", remaining}});
}

void Journal::cut(double t, const std::string& task, const std::vector<int>& kept, double remaining) {
  write(t, "cut", {{"task", task}, {"gpus", kept}, {"remaining", remaining}, {"after_cut", true}});
}

void Journal::done(double t, const std::string& task) { write(t, "done", {{"task", task}}); }

void Journal::failed(double t, const std::string& task, const Failure& why) {
  write(t, "failed", {{"task", task}, {"why", why.what}, {"code", int(why.code)}});
}

void Journal::refused(double t, const std::string& letter, const std::string& why) {
  write(t, "refused", {{"letter", letter}, {"why", why}});
}

void Journal::stop(double t) {
  write(t, "stop", nlohmann::json::object());
  file_.sync();
}

std::vector<std::string> arrived(const std::string& run_dir) {
  std::vector<std::string> texts;
  std::ifstream in(path_of(run_dir));
  for (std::string text; std::getline(in, text);)
    if (const auto line = parse_json(text); line.is_object() && line.value("event", "") == "arrive")
      texts.push_back(line.value("text", ""));
  return texts;
}

namespace {

// Empty where there is none; one that cannot be read is not empty.
std::string text_of(const std::string& path) {
  if (!std::filesystem::exists(path)) return {};
  const auto bytes = read_file(path, std::numeric_limits<std::int64_t>::max());
  return {bytes.begin(), bytes.end()};
}

std::size_t whole_lines(const std::string& text) { return text.rfind('\n') + 1; }  // npos + 1 is 0

void each_line_of(std::string text, const std::string& path, const std::function<void(const nlohmann::json&)>& use) {
  text.resize(whole_lines(text));
  std::istringstream lines(text);
  int number = 1;
  for (std::string one; std::getline(lines, one); ++number) {
    try {
      const auto line = parse_json(one);
      if (!line.is_object()) throw DataError(path, "no JSON object");
      use(line);
    } catch (const std::exception&) {
      throw DataError(path + ":" + std::to_string(number), "is no line of a schedule",
                      "remove it, or start with --fresh");
    }
  }
}

}  // namespace

void each_line(const std::string& run_dir, const std::function<void(const nlohmann::json&)>& use) {
  each_line_of(text_of(path_of(run_dir)), path_of(run_dir), use);
}

Recovered recover(const std::string& run_dir) {
  const std::string path = path_of(run_dir), text = text_of(path);
  if (whole_lines(text) < text.size()) std::filesystem::resize_file(path, whole_lines(text));
  Reader reader;
  each_line_of(text, path, [&](const nlohmann::json& line) { reader.take(line); });
  reader.settle();
  return reader.found;
}

}  // namespace trireme::cluster

#include "trainers/run_folder.h"

#include "comm/error.h"
#include "framework/base/agree.h"
#include "framework/io/file_io.h"

#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include <nlohmann/json.hpp>

#include <sys/utsname.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::string move_away(const std::string& dir) {
  std::error_code unknown;
  const fs::path from_there = fs::relative(fs::current_path(unknown), dir, unknown);
  if (!from_there.empty() && *from_there.begin() != "..")
    throw UsageError(dir, "--fresh would rename the folder that you are in", "choose another --out");
  for (int n = 1;; ++n) {
    const std::string to = dir + ".old-" + std::to_string(n);
    if (fs::exists(fs::symlink_status(to))) continue;
    std::error_code failed;
    fs::rename(dir, to, failed);
    if (failed) throw DataError(dir, "cannot be renamed to " + to + ": " + failed.message(), "choose another --out");
    return to;
  }
}

// Rank 0 makes the folder and a token; a rank that cannot read the token is on another file system.
void check_visible(const std::string& dir, Communicator& world) {
  std::int64_t token = 0;
  const std::string probe = dir + "/.visible";
  agree(world, attempt([&] {
          if (world.rank() != 0) return;
          token = std::int64_t(getpid()) << 32 ^ std::int64_t(std::time(nullptr));
          replace_durably(system_io(), probe, std::to_string(token));
        }));
  world.broadcast({&token, 1, DType::i64, {}}, 0).wait();
  const auto seen = attempt([&] {
    std::string text;
    std::ifstream(probe) >> text;
    if (text != std::to_string(token))
      throw DataError(dir, "rank " + std::to_string(world.rank()) + " does not see this folder",
                      "choose --out on a file system that all nodes share");
  });
  agree(world, seen);
  if (world.rank() == 0) unlink(probe.c_str());
}

// Has training left anything here that another configuration could not take up?
bool holds_checkpoint(const std::string& dir) {
  std::error_code failed;
  for (const auto& entry : fs::directory_iterator(dir + "/ckpt", failed))
    if (fs::exists(entry.path() / "manifest.json", failed)) return true;
  return false;
}

void make_folders(const std::string& dir) {
  std::error_code failed;
  fs::create_directories(dir, failed);
  if (failed) throw DataError(dir, "cannot be made: " + failed.message(), "choose another --out");
}

// What a killed rank 0 was replacing of a folder's own files. Only with the folder locked: they might be another job's.
void remove_leftovers(const std::string& dir) {
  const std::set<std::string, std::less<>> own = {".visible",    "config.resolved.yaml", "env.json", "metrics.jsonl",
                                                  "report.html", "report.json",          "sheet.png"};
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) {
    const std::string name = entry.path().filename().string(), replaced = name.substr(0, name.find(".tmp-"));
    const std::string_view number = std::string_view(name).substr(std::min(name.size(), replaced.size() + 5));
    if (own.contains(replaced) && !number.empty() && number.find_first_not_of("0123456789") == std::string_view::npos)
      fs::remove(entry.path(), ignored);
  }
}

std::string text_of(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void check_results(const std::string& dir, Results ours) {
  const auto there = results_in(dir);
  if (!there || *there == ours) return;
  const char* names[] = {"a run of trireme train", "a sweep", "pictures of trireme sample"};
  throw UsageError(dir, std::string("holds ") + names[int(*there)], "choose another --out, or --fresh to rename it");
}

void check_taken_up(const RunFolder& folder, const Config& config, const std::function<void(Fields&)>& schema) {
  const std::string saved = folder.file("config.resolved.yaml");
  if (!fs::exists(saved)) return;
  std::string list;
  for (const auto& k : differing_keys(Config::load(saved), config, schema)) list += (list.empty() ? "" : ", ") + k;
  if (!list.empty())
    throw UsageError(folder.dir, "holds a run with other values of " + list,
                     "use the old values, another --out, or --fresh to start over");
}

// "checkpoint.every" to "20" and so on, from what Config::print writes.
std::map<std::string, std::string> dotted_values(const std::string& yaml) {
  std::map<std::string, std::string> values;
  std::vector<std::string> groups;
  std::istringstream in(yaml);
  for (std::string line; std::getline(in, line);) {
    const auto depth = std::min(line.find_first_not_of(' '), line.size()) / 2, colon = line.find(": ");
    groups.resize(std::min(groups.size(), depth));
    std::string path;
    for (const auto& g : groups) path += g + ".";
    if (colon == std::string::npos && line.ends_with(':'))
      groups.push_back(line.substr(2 * depth, line.size() - 2 * depth - 1));
    else if (colon != std::string::npos)
      values[path + line.substr(2 * depth, colon - 2 * depth)] = line.substr(colon + 2);
  }
  return values;
}

// The old text with a comment about what this start has changed against the first one; the same text if that is
// nothing.
std::string with_changes(std::string saved, const std::string& now, const std::string& when) {
  const auto first = dotted_values(saved);
  std::string list;
  for (const auto& [key, value] : dotted_values(now))
    if (const auto old = first.find(key); old == first.end() || old->second != value)
      list += (list.empty() ? "" : ", ") + key + ": " + value;
  return list.empty() ? saved : saved + "# " + when + ": " + list + "\n";
}

// The first start's object with one more entry in `resumes`: the step, the date, and what is not as it was then.
std::string with_resume(const std::string& saved, const std::string& now, std::int64_t step) {
  auto first = nlohmann::json::parse(saved, nullptr, false);
  const auto started = nlohmann::json::parse(now);
  if (!first.is_object()) return now;  // damaged
  nlohmann::json entry{{"step", step}};
  for (const auto& [key, value] : started.items())
    if (key == "date" || !first.contains(key) || first[key] != value) entry[key] = value;
  auto& resumes = first["resumes"];
  if (!resumes.is_array()) resumes = nlohmann::json::array();
  resumes.push_back(entry);
  return first.dump(2) + "\n";
}

std::string date_now() {
  char date[64];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return date;
}

}  // namespace

void check_same_config(std::uint64_t hash, Communicator& world) {
  std::vector<std::int64_t> all(world.size());
  const auto mine = std::int64_t(hash);
  world.all_gather({&mine, 1, DType::i64, {}}, {all.data(), all.size(), DType::i64, {}}).wait();
  for (std::size_t r = 0; r < all.size(); ++r)
    if (all[r] != all[0])
      throw UsageError("rank " + std::to_string(r), "was started with another configuration than rank 0",
                       "start all ranks with the same file and the same key=value words");
}

std::optional<Results> results_in(const std::string& dir) {
  std::istringstream in(text_of(dir + "/config.resolved.yaml"));
  for (std::string line; std::getline(in, line);) {
    if (line == "recipe: lora_sweep") return Results::sweep;
    if (line.starts_with("recipe: ")) return Results::training;
    if (line.starts_with("method: ")) return Results::pictures;
  }
  return {};
}

void refuse_sweep(const std::string& dir) {
  if (dir.empty()) return;
  const auto has_winner = [](const fs::path& task) { return fs::exists(task / "winner/adapter_config.json"); };
  const bool task = fs::exists(dir + "/result.json") && has_winner(dir);
  if (!task && results_in(dir) != Results::sweep) return;
  std::string winners = task ? dir + "/winner" : "";
  std::error_code ignored;
  std::set<fs::path> tasks;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) tasks.insert(entry.path());
  for (const auto& t : tasks)
    if (has_winner(t)) winners += (winners.empty() ? "" : ", ") + (t / "winner").string();
  throw UsageError(
      dir, task ? "is a task of a sweep, without weights of its own" : "is a sweep, without weights of its own",
      winners.empty() ? "no task of it has a winner yet"
                      : "its winners are adapters: " + winners + "; trireme export --format peft copies one");
}

std::string changed_keys(const std::string& saved, const std::string& now) {
  const auto old = dotted_values(saved), fresh = dotted_values(now);
  std::set<std::string> keys;
  for (const auto& [a, b] : {std::pair(&old, &fresh), std::pair(&fresh, &old)})
    for (const auto& [key, value] : *a)
      if (const auto other = b->find(key); other == b->end() || other->second != value) keys.insert(key);
  std::string list;
  for (const auto& key : keys) list += (list.empty() ? "" : ", ") + key;
  return list;
}

std::shared_ptr<FolderLock> take_folder(const std::string& dir, bool fresh, Results results) {
  const bool there = fs::exists(dir);
  make_folders(dir);
  auto lock = std::make_shared<FolderLock>(dir);
  if (!fresh) check_results(dir, results);
  if (!fresh && lock->warning().empty()) remove_leftovers(dir);
  if (!fresh || !there) return lock;
  lock->moved_to(move_away(dir));
  make_folders(dir);
  return std::make_shared<FolderLock>(dir);
}

RunFolder open_run_folder(const std::string& dir, bool fresh, const Config& config,
                          const std::function<void(Fields&)>& schema, Communicator& world) {
  RunFolder folder{dir, {}, true};
  agree(world, attempt([&] {
          if (world.rank() != 0) return;
          folder.lock = take_folder(dir, fresh, Results::training);
          folder.alone = folder.lock->warning().empty();
          if (!folder.alone) std::cerr << "trireme: warning: " << folder.lock->warning() << std::endl;
          make_folders(dir + "/ckpt");
          if (holds_checkpoint(dir)) check_taken_up(folder, config, schema);
        }));
  check_visible(dir, world);
  return folder;
}

std::string describe_environment(int ranks, int threads, const std::string& recipe_json) {
  utsname name{};
  uname(&name);
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  std::string cpu;
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) {
      cpu = line.substr(line.find(':') + 2);
      break;
    }
  const nlohmann::json recipe = nlohmann::json::parse(recipe_json, nullptr, false);
  nlohmann::json j{{"trireme", TRIREME_VERSION},
                   {"date", date_now()},
                   {"host", host},
                   {"cpu", cpu},
                   {"cores", std::thread::hardware_concurrency()},
                   {"kernel", name.release},
                   {"ranks", ranks},
                   {"threads_per_rank", threads}};
  if (!recipe.is_discarded()) j["recipe"] = recipe;
  return j.dump(2) + "\n";
}

void record_start(const RunFolder& folder, const Config& config, const std::function<void(Fields&)>& schema,
                  const std::string& environment, std::int64_t step) {
  const std::string config_file = folder.file("config.resolved.yaml"), env_file = folder.file("env.json");
  const std::string old_config = step > 0 ? text_of(config_file) : "", old_env = step > 0 ? text_of(env_file) : "";
  const std::string now = config.print(schema, false);
  const std::string when = "resumed at step " + std::to_string(step) + ", " + date_now();
  replace_durably(system_io(), config_file, old_config.empty() ? now : with_changes(old_config, now, when));
  replace_durably(system_io(), env_file, old_env.empty() ? environment : with_resume(old_env, environment, step));
}

void record_measured(const RunFolder& folder, const std::string& before, const std::string& now) {
  const std::string file = folder.file("env.json");
  auto environment = nlohmann::json::parse(text_of(file), nullptr, false);
  const auto first = nlohmann::json::parse(before, nullptr, false), last = nlohmann::json::parse(now, nullptr, false);
  if (!environment.is_object() || !first.is_object() || !last.is_object()) return;
  bool more = false;
  for (const auto& [key, value] : last.items())
    if (!first.contains(key)) environment["measured"][key] = value, more = true;
  if (more) replace_durably(system_io(), file, environment.dump(2) + "\n");
}

}  // namespace trireme

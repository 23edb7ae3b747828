#include "trainers/run_folder.h"

#include "comm/error.h"
#include "framework/base/agree.h"
#include "framework/io/file_io.h"

#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

#include <nlohmann/json.hpp>

#include <sys/utsname.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

void move_away(const std::string& dir) {
  for (int n = 1;; ++n) {
    const std::string to = dir + ".old-" + std::to_string(n);
    if (fs::exists(fs::symlink_status(to))) continue;
    std::error_code failed;
    fs::rename(dir, to, failed);
    if (failed) throw DataError(dir, "cannot be renamed to " + to + ": " + failed.message(), "choose another --out");
    return;
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

}  // namespace

void check_same_config(const Config& config, const std::function<void(Fields&)>& schema, Communicator& world) {
  std::vector<std::int64_t> all(world.size());
  const auto mine = std::int64_t(config_hash(config, schema));
  world.all_gather({&mine, 1, DType::i64, {}}, {all.data(), all.size(), DType::i64, {}}).wait();
  for (std::size_t r = 0; r < all.size(); ++r)
    if (all[r] != all[0])
      throw UsageError("rank " + std::to_string(r), "was started with another configuration than rank 0",
                       "start all ranks with the same file and the same key=value words");
}

RunFolder open_run_folder(const std::string& dir, bool fresh, const Config& config,
                          const std::function<void(Fields&)>& schema, Communicator& world) {
  const RunFolder folder{dir};
  agree(world, attempt([&] {
          if (world.rank() != 0) return;
          std::error_code failed;
          if (fresh && fs::exists(dir)) move_away(dir);
          fs::create_directories(dir + "/ckpt", failed);
          if (failed) throw DataError(dir, "cannot be made: " + failed.message(), "choose another --out");
          const std::string saved = folder.file("config.resolved.yaml");
          if (holds_checkpoint(dir) && fs::exists(saved)) {
            const auto keys = differing_keys(Config::load(saved), config, schema);
            if (!keys.empty()) {
              std::string list;
              for (const auto& k : keys) list += (list.empty() ? "" : ", ") + k;
              throw UsageError(dir, "holds a run with other values of " + list,
                               "use the old values, another --out, or --fresh to start over");
            }
          }
          replace_durably(system_io(), saved, config.print(schema, false));
        }));
  check_visible(dir, world);
  return folder;
}

std::string describe_environment(int ranks, int threads, const std::string& recipe_json) {
  utsname name{};
  uname(&name);
  char date[64], host[256] = "";
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
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
                   {"date", date},
                   {"host", host},
                   {"cpu", cpu},
                   {"cores", std::thread::hardware_concurrency()},
                   {"kernel", name.release},
                   {"ranks", ranks},
                   {"threads_per_rank", threads}};
  if (!recipe.is_discarded()) j["recipe"] = recipe;
  return j.dump(2) + "\n";
}

}  // namespace trireme

#include "bench/bench.h"

#include "comm/error.h"
#include "trainers/launch.h"

#include <cstdlib>
#include <filesystem>

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

namespace trireme::bench {
namespace {

namespace fs = std::filesystem;

fs::path self() { return fs::read_symlink("/proc/self/exe"); }

// bench/peers of the source tree: above the current folder, or above the program.
std::string peer_script(const std::string& name) {
  for (fs::path start : {fs::current_path(), self().parent_path()})
    for (fs::path p = start;; p = p.parent_path()) {
      const fs::path script = p / "bench" / "peers" / name;
      if (fs::exists(script)) return script.string();
      if (p == p.parent_path()) break;
    }
  throw UsageError("bench/peers/" + name, "not found",
                   "run this inside the source tree: the peers are Python files there");
}

std::string python() {
  if (const char* own = std::getenv("TRIREME_PYTHON")) return own;
  const char *cache = std::getenv("XDG_CACHE_HOME"), *home = std::getenv("HOME");
  const fs::path venv =
      (cache && *cache ? fs::path(cache) : fs::path(home ? home : "") / ".cache") / "trireme/venv/bin/python3";
  return fs::exists(venv) ? venv.string() : "python3";
}

}  // namespace

std::vector<std::string> own_arm(const Options& o, const std::string& arm, const std::string& problem, int ranks,
                                 const std::string& folder) {
  const std::vector<std::string> words{"bench", o.name,      "--serve", folder,     "--arm",
                                       arm,     "--problem", problem,   "--device", o.device};
  if (ranks > 1) return mpirun_command(ranks, words);
  std::vector<std::string> command{self().string()};
  command.insert(command.end(), words.begin(), words.end());
  return command;
}

std::vector<std::string> peer_arm(const std::string& script, const std::vector<std::string>& arguments,
                                  const std::string& folder, int ranks) {
  std::vector<std::string> command = ranks > 0 ? mpirun_prefix(ranks) : std::vector<std::string>();
  command.insert(command.end(), {python(), peer_script(script), "--serve", folder});
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

Scratch::Scratch() {
  std::string name = (fs::temp_directory_path() / "trireme-bench-XXXXXX").string();
  if (!mkdtemp(name.data())) throw DataError(name, "cannot be made", "point TMPDIR to a folder that can be written");
  dir_ = name;
}

Scratch::~Scratch() {
  std::error_code ignored;
  fs::remove_all(dir_, ignored);
}

int free_port() {
  const int s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  socklen_t length = sizeof address;
  const bool ok = bind(s, reinterpret_cast<sockaddr*>(&address), length) == 0 &&
                  getsockname(s, reinterpret_cast<sockaddr*>(&address), &length) == 0;
  close(s);
  if (!ok) throw CommError("bench", "no free TCP port");
  return ntohs(address.sin_port);
}

}  // namespace trireme::bench

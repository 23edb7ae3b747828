#include "trainers/commands/submit.h"

#include "comm/error.h"
#include "framework/command.h"
#include "framework/io/file_io.h"
#include "trainers/loop.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <map>
#include <regex>
#include <sstream>
#include <utility>

#include <sys/wait.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t most_tasks = 10000;

// Quoted or not, a line of a script ends at a newline; the other control characters only hide what is run.
void refuse_control(std::string_view where, std::string_view value) {
  for (const unsigned char c : value)
    if (c < 0x20 || c == 0x7f)
      throw UsageError(where, "has a newline or another control character in it",
                       "values for a batch script are plain text");
}

// As sbatch reads it: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on, or no limit.
void check_time(const std::string& time) {
  refuse_control("--time", time);
  static const std::regex form("\\d+(:\\d+){0,2}|\\d+-\\d+(:\\d+){0,2}|infinite|unlimited", std::regex::icase);
  if (!time.empty() && !std::regex_match(time, form))
    throw UsageError("--time", "'" + time + "' is no time limit of Slurm",
                     "write minutes, or days-hours:minutes:seconds");
}

// `value` with `before` in front of every one of `special`.
std::string escaped(std::string_view value, std::string_view special, std::string_view before) {
  std::string text;
  for (const char c : value) {
    if (special.find(c) != special.npos) text += before;
    text += c;
  }
  return text;
}

// One word of the shell: a quote leaves the quotes, stands there escaped, and opens them again.
std::string shell_word(std::string_view value) {
  refuse_control("trireme submit", value);
  return "'" + escaped(value, "'", "'\\'") + "'";
}

// One word of a #SBATCH line, which has its own rules: only a double quote and a backslash are special within quotes.
std::string sbatch_word(std::string_view value) {
  refuse_control("trireme submit", value);
  return "\"" + escaped(value, "\"\\", "\\") + "\"";
}

std::string job_name(const std::string& file) {
  std::string name = fs::path(file).stem().string();
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && !std::strchr("._-", c)) c = '_';
  return name.empty() ? "trireme" : name;
}

// The items of "a,b,[c,d]": three.
std::vector<std::string> items(std::string_view list) {
  std::vector<std::string> found(1);
  int depth = 0;
  char quote = 0;
  for (const char c : list) {
    if (quote) {
      if (c == quote) quote = 0;
    } else if ((c == '"' || c == '\'') && found.back().empty()) {
      quote = c;
    } else if (c == '[' || c == '{') {
      ++depth;
    } else if (c == ']' || c == '}') {
      --depth;
    } else if (c == ',' && depth == 0) {
      found.emplace_back();
      continue;
    }
    found.back() += c;
  }
  return found;
}

// Where the run of task `k` goes.
std::string task_dir(const std::string& out, std::size_t k, std::size_t tasks) {
  return tasks == 1 ? out : out + "." + std::to_string(k);
}

std::string run_dir(const SubmitOptions& o) {
  TrainOptions train;
  train.file = o.file;
  train.out = o.out;
  fs::path dir = fs::path(run_dir_of(train)).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();
  return dir.string();
}

struct Answer {
  int code = 0;
  std::string out, err;
};

std::string read_all(int fd) {
  std::string text;
  std::array<char, 4096> buffer;
  for (;;) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(buffer.data(), std::size_t(n));
  }
  close(fd);
  return text;
}

// sbatch writes a line or two: neither pipe fills while the other is read.
Answer run_sbatch(const std::string& script) {
  int out[2], err[2];
  if (pipe(out) != 0 || pipe(err) != 0)
    throw Error(ExitCode::bug, "sbatch", std::string("no pipe: ") + std::strerror(errno));
  const pid_t child = fork();
  if (child < 0) throw Error(ExitCode::memory, "sbatch", std::string("cannot be started: ") + std::strerror(errno));
  if (child == 0) {
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    for (const int fd : {out[0], out[1], err[0], err[1]}) close(fd);
    execlp("sbatch", "sbatch", "--parsable", script.c_str(), nullptr);
    _exit(127);
  }
  close(out[1]);
  close(err[1]);
  Answer a{0, read_all(out[0]), read_all(err[0])};
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  a.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return a;
}

// "sbatch: error: A\nsbatch: error: B\n" as "A; B".
std::string reasons(const std::string& err) {
  std::istringstream in(err);
  std::string all;
  for (std::string line; std::getline(in, line);) {
    for (const std::string_view prefix : {"sbatch: ", "error: ", "fatal: "})
      if (line.starts_with(prefix)) line.erase(0, prefix.size());
    if (!line.empty()) all += (all.empty() ? "" : "; ") + line;
  }
  return all.empty() ? "it gives no reason" : all;
}

}  // namespace

std::vector<std::vector<std::string>> tasks_of(const std::vector<std::string>& overrides) {
  std::vector<std::vector<std::string>> tasks(1);
  for (const auto& o : overrides) {
    const auto equals = o.find('=');
    // Not an override: the configuration says so.
    const std::string key = equals == o.npos ? "" : o.substr(0, equals + 1);
    const auto values = items(std::string_view(o).substr(key.size()));
    if (tasks.size() * values.size() > most_tasks)
      throw UsageError("trireme submit", "the sweep has more than " + std::to_string(most_tasks) + " combinations",
                       "split it");
    std::vector<std::vector<std::string>> longer;
    for (const auto& task : tasks) {
      for (const auto& v : values) {
        if (values.size() > 1 && v.find_first_not_of(' ') == v.npos)
          throw UsageError("command line (" + o + ")", "a value of the sweep is empty", "write key=a,b,c");
        longer.push_back(task);
        longer.back().push_back(key + v);
      }
    }
    tasks = std::move(longer);
  }
  return tasks;
}

std::string sbatch_script(const SubmitOptions& o, const std::vector<std::vector<std::string>>& tasks,
                          const std::string& program, const std::string& folder) {
  const std::string out = run_dir(o);
  const bool array = tasks.size() > 1;
  std::map<std::string, std::string> settings{{"job-name", job_name(o.file)},
                                              {"nodes", std::to_string(o.nodes)},
                                              {"ntasks-per-node", std::to_string(o.ranks_per_node)},
                                              {"output", escaped((fs::path(folder) / out).string(), "%", "%") +
                                                             (array ? ".slurm-%A_%a.out" : ".slurm-%j.out")}};
  if (!o.time.empty()) settings["time"] = o.time;
  if (!o.partition.empty()) settings["partition"] = o.partition;
  if (array) settings["array"] = "0-" + std::to_string(tasks.size() - 1);

  std::string block = "cd " + shell_word(folder) + " || exit 3\ntrireme=" + shell_word(program) +
                      "\nrequeues=" + std::to_string(o.requeues) + "\n";
  if (array) block += "case $SLURM_ARRAY_TASK_ID in\n";
  for (std::size_t k = 0; k < tasks.size(); ++k) {
    block += (array ? "  " + std::to_string(k) + ") " : std::string()) + "arguments=(" + shell_word(o.file);
    for (const auto& v : tasks[k]) block += " " + shell_word(v);
    block += " --out " + shell_word(task_dir(out, k, tasks.size())) + ")" + (array ? " ;;\n" : "\n");
  }
  if (array) block += "  *) echo \"no task $SLURM_ARRAY_TASK_ID in this sweep\" >&2; exit 2 ;;\nesac\n";

  std::istringstream in(launch_sbatch);
  std::string script;
  bool in_block = false, directives_seen = false;
  for (std::string line; std::getline(in, line);) {
    const bool directive = line.starts_with("#SBATCH --");
    if (directive) {
      directives_seen = true;
      const std::string name = line.substr(10, line.find('=') - 10);
      if (settings.contains(name)) continue;  // ours follows
    } else if (std::exchange(directives_seen, false)) {
      for (const auto& [name, value] : settings) script += "#SBATCH --" + name + "=" + sbatch_word(value) + "\n";
      for (const auto& word : o.sbatch) script += "#SBATCH " + sbatch_word(word) + "\n";
    }
    if (line.starts_with("# <<<")) in_block = false;
    if (!in_block) script += line + "\n";
    if (line.starts_with("# >>>")) {
      in_block = true;
      script += block;
    }
  }
  return script;
}

int submit_command(const SubmitOptions& o) {
  for (const auto& word : o.sbatch)
    if (!word.starts_with('-'))
      throw UsageError("command line", word + " after --: not an option of sbatch", "write --name=value");
  check_time(o.time);
  const auto tasks = tasks_of(o.overrides);
  for (const auto& task : tasks) {
    TrainOptions train;
    train.file = o.file;
    train.overrides = task;
    train.ranks = o.nodes * o.ranks_per_node;
    check_config(train);
  }
  const std::string script =
      sbatch_script(o, tasks, fs::read_symlink("/proc/self/exe").string(), fs::current_path().string());
  if (o.print) {
    std::cout << script << std::flush;
    return 0;
  }
  const std::string out = run_dir(o), file = out + ".sbatch";
  std::error_code failed;
  // Slurm opens the log there before the script runs.
  if (const fs::path parent = fs::path(out).parent_path(); !parent.empty()) fs::create_directories(parent, failed);
  if (failed) throw DataError(out, "its folder cannot be made: " + failed.message(), "choose another --out");
  replace_durably(system_io(), file, script);

  const Answer answer = run_sbatch(file);
  if (answer.code == 127 && answer.out.empty() && answer.err.empty())
    throw UsageError(
        "sbatch", "is not installed or not on PATH",
        "submit where the cluster's Slurm commands are (Debian: slurm-client), or copy " + file + " there");
  if (answer.code != 0)
    throw UsageError("sbatch", "refused " + file + ": " + reasons(answer.err),
                     "sinfo lists partitions and limits; further options of sbatch go after --");
  const std::string id = answer.out.substr(0, answer.out.find_first_of(";\n"));
  std::cout << "submitted: job=" << id << " script=" << file << " log=" << out << ".slurm-" << id
            << (tasks.size() > 1 ? "_K.out\n" : ".out\n");
  for (std::size_t k = 0; tasks.size() > 1 && k < tasks.size(); ++k) {
    std::cout << "task " << k << ":";
    for (const auto& v : tasks[k]) std::cout << " " << v;
    std::cout << " run=" << task_dir(out, k, tasks.size()) << "\n";
  }
  std::cout << std::flush;
  return 0;
}

namespace {

const Commands::Entry registered(
    {"submit", "train as a Slurm job; key=a,b,c makes a job array; options of sbatch go after --",
     [](CommandOptions& command) {
       const auto o = std::make_shared<SubmitOptions>();
       command.experiment(o->file, o->overrides);
       command.number("--nodes", o->nodes, "nodes", {1, 100000});
       command.number("--ranks-per-node", o->ranks_per_node, "ranks on each node", {1, 10000});
       command.text("--time", o->time, "time limit, such as 30 (minutes) or 1-12:00:00");
       command.text("--partition", o->partition, "partition of the cluster");
       command.text("--out", o->out, "run folder (default runs/<yaml stem>); of a sweep's task K: OUT.K");
       command.number("--requeues", o->requeues, "how often it may queue itself again", {0, 1000000});
       command.flag("--print", o->print, "show the batch script, submit nothing");
       return [o](const CommandLine& line) {
         o->sbatch = line.rest;
         return submit_command(*o);
       };
     },
     /*takes_rest=*/true});

}  // namespace
}  // namespace trireme

// Criteo's lines to arrays, on one core: our parser against pyarrow.csv and against the loop of facebookresearch/dlrm,
// on one file of generated lines that lies in the page cache.
#include "bench/bench.h"
#include "comm/error.h"
#include "data/rng.h"
#include "data/tables/criteo.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

namespace trireme::bench {
namespace {

constexpr int lines = 40000, modulo = 10000000;

// Counts with heavy tails, words of eight digits, a tenth of the columns blank.
void write_lines(const std::string& path) {
  std::ofstream out(path, std::ios::binary);
  char word[32];
  for (std::uint64_t i = 0; i < lines; ++i) {
    Rng rng(1, "bench/criteo_parse", i);
    out << (rng.uniform() < 0.25 ? '1' : '0');
    for (int k = 0; k < criteo_dense; ++k) {
      out << '\t';
      if (rng.uniform() >= 0.1) out << std::int64_t(1 / (rng.uniform() + 1e-4)) - 1;
    }
    for (int k = 0; k < criteo_tables; ++k) {
      std::snprintf(word, sizeof word, "\t%08x", unsigned(rng.below(std::uint64_t{1} << 32)));
      out << (rng.uniform() < 0.1 ? "\t" : word);
    }
    out << '\n';
  }
}

std::string shared_file(const std::string& folder) {
  return (std::filesystem::path(folder).parent_path() / "train.txt").string();
}

void serve(const Options& o, Communicator& world) {
  Server server(o.serve, world.rank());
  std::ifstream in(shared_file(o.serve), std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  CriteoBlock block;
  server.run([&] {
    parse_criteo(text, modulo, block);
    return double(block.label.size());
  });
}

nlohmann::json run(const Options& o) {
  const Scratch scratch;
  const std::string file = scratch.path("train.txt");
  write_lines(file);
  std::vector<std::unique_ptr<Arm>> arms;
  arms.push_back(std::make_unique<Arm>("trireme", own_arm(o, "trireme", "", 1, scratch.path("trireme")), 1,
                                       scratch.path("trireme")));
  for (const std::string peer : {"pyarrow", "pyarrow_arrays", "reference_loop"})
    arms.push_back(std::make_unique<Arm>(
        peer, peer_arm("criteo_parse.py", {"--file", file, "--arm", peer}, scratch.path(peer)), 1, scratch.path(peer)));
  std::vector<Arm*> stepping;
  for (auto& arm : arms) arm->ready(std::chrono::seconds(120)), stepping.push_back(arm.get());
  alternate(stepping, 1, o.blocks);
  nlohmann::json rows = nlohmann::json::array();
  const double bytes = double(std::filesystem::file_size(file));
  for (auto& arm : arms) {
    auto row = arm->row();
    if (arm->skipped().empty()) {
      row["mb_per_cpu_s"] = bytes * 1e-3 / arm->median_cpu_ms();
      row["cpu_ratio"] = arm->median_cpu_ms() / arms[0]->median_cpu_ms();
    }
    rows.push_back(row);
  }
  return rows;
}

const Benchmarks::Entry entry({"criteo_parse", "Criteo's lines to arrays, against pyarrow.csv and the reference's loop",
                               run, serve});

}  // namespace
}  // namespace trireme::bench

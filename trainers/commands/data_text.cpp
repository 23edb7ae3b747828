// `trireme data wordnet|gcide|arithmetic`
#include "comm/error.h"
#include "data/file.h"
#include "data/text/arithmetic.h"
#include "data/text/documents.h"
#include "trainers/commands/data.h"

#include <cstdio>
#include <fstream>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

std::vector<std::string> lines_for(const DataOptions& o) {
  if (o.name == "wordnet") return o.from.empty() ? wordnet_documents() : wordnet_documents(o.from);
  if (o.name == "gcide") return o.from.empty() ? gcide_documents() : gcide_documents(o.from);
  std::vector<std::string> lines;
  for (int i = 0; i < o.problems; ++i) {
    const auto p = arithmetic_problem(o.level, std::uint64_t(o.seed), ArithmeticSplit::train, i);
    const nlohmann::ordered_json row = {{"instruction", p.question},
                                        {"output", p.answer},
                                        {"prompt", p.question},
                                        {"chosen", p.answer},
                                        {"rejected", p.wrong}};
    lines.push_back(row.dump());
  }
  return lines;
}

}  // namespace

bool is_text_data(const std::string& name) { return name == "wordnet" || name == "gcide" || name == "arithmetic"; }

int text_data(const DataOptions& o) {
  const bool problems = o.name == "arithmetic";
  const std::string path = o.out.empty() ? data_cache(o.name + (problems ? ".jsonl" : ".txt")) : o.out;
  const auto lines = lines_for(o);
  std::size_t bytes = 0;
  write_whole(path, [&](const std::string& name) {
    std::ofstream out(name, std::ios::binary);
    for (const std::string& line : lines) out << line << (problems ? "\n" : "\n\n"), bytes += line.size();
    out.close();
    if (!out) throw DataError(path, "cannot be written", "check the folder and the free space");
  });
  std::printf("%s: %zu %s, %.1f MB\nwrote %s\n", o.name.c_str(), lines.size(), problems ? "problems" : "documents",
              double(bytes) / 1e6, path.c_str());
  return 0;
}

}  // namespace trireme

// links: comm
// The house, read off the sources: which folder may include which, and how long files and functions get.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

// The one rule (DESIGN.md, 2). A folder's rooms in order: a room includes only itself and what stands to its left;
// "." is the folder itself.
const std::map<std::string, std::vector<std::string>> rooms = {
    {"comm", {".", "engine", "local", "mpi", "cuda", "wrappers", "watchdog"}},
    {"compression", {"stages", ".", "codecs"}},
    {"data", {".", "text", "image_text", "tables", "scenes"}},
    {"framework",
     {"base", "config", "kernels", "io", "formats", "metrics", "optim", "gradients", "nn", "losses", "models", "report",
      "."}},
    {"trainers", {".", "scale", "sweep", "sample", "commands"}},
};
// And the folders themselves. Recipes and trainers never see each other.
const std::map<std::string, std::vector<std::string>> folders = {
    {"comm", {}},
    {"compression", {"comm"}},
    {"data", {"comm"}},
    {"framework", {"comm", "compression", "data"}},
    {"trainers", {"comm", "compression", "data", "framework"}},
    {"recipes", {"comm", "compression", "data", "framework"}},
    {"bench", {"comm", "compression", "data", "framework", "trainers", "recipes"}},
    {"python", {"comm", "compression"}},
};
const std::vector<std::string> without_torch = {"comm", "compression"};

template <class List>
bool holds(const List& list, const std::string& what) {
  return std::find(list.begin(), list.end(), what) != list.end();
}

std::vector<std::string> parts(const std::string& path) {
  std::vector<std::string> all;
  std::istringstream in(path);
  for (std::string part; std::getline(in, part, '/');) all.push_back(part);
  return all;
}

std::string room_of(const std::vector<std::string>& path) { return path.size() > 2 ? path[1] : "."; }

// Why `file` may not include `target`; empty when it may.
std::string broken_arrow(const std::string& file, const std::string& target) {
  const auto from = parts(file), to = parts(target);
  const bool public_header = file.ends_with(".h") && file != "framework/base/torch_pch.h";
  if (to[0] == "torch" || to[0] == "ATen" || to[0] == "c10" || to[0] == "caffe2") {
    if (holds(without_torch, from[0])) return "never sees torch";
    if (public_header && target != "ATen/core/Tensor.h") return "is a public header: only ATen/core/Tensor.h of torch";
    return "";
  }
  if (!folders.contains(to[0]) && to[0] != "tests") return "";
  if (from[0] != to[0]) return holds(folders.at(from[0]), to[0]) ? "" : "may not include " + to[0] + "/";
  const std::string here = room_of(from), there = room_of(to);
  if (from[0] == "recipes") return here == there ? "" : "is a recipe of its own";
  if (!rooms.contains(from[0])) return "";
  const auto& order = rooms.at(from[0]);
  if (!holds(order, here)) return "lies in a room that the table does not name";
  if (std::find(order.begin(), order.end(), there) > std::find(order.begin(), order.end(), here))
    return "stands to the left of " + there;
  return "";
}

std::vector<std::string> broken_arrows(const std::string& file, const std::string& text) {
  static const std::regex include(R"(^\s*#\s*include\s*(["<])([^">]+)[">])");
  std::vector<std::string> broken;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (!std::regex_search(line, match, include)) continue;
    const std::string why = broken_arrow(file, match[2]);
    if (!why.empty()) broken.push_back(file + " includes " + match[2].str() + ", but it " + why);
  }
  return broken;
}

// Comments, strings and character constants blanked out, lines kept.
std::string code_only(const std::string& text) {
  std::string code = text;
  for (std::size_t i = 0; i < text.size();) {
    std::size_t end = i + 1;
    if (text.compare(i, 2, "//") == 0) {
      end = std::min(text.find('\n', i), text.size());
    } else if (text.compare(i, 2, "/*") == 0) {
      end = std::min(text.find("*/", i), text.size() - 2) + 2;
    } else if (text.compare(i, 3, "R\"(") == 0) {
      end = std::min(text.find(")\"", i), text.size() - 2) + 2;
    } else if (text[i] == '"' ||
               (text[i] == '\'' && (i == 0 || !std::isalnum(static_cast<unsigned char>(text[i - 1])) ||
                                    text[i - 1] == 'U' || text[i - 1] == 'u' || text[i - 1] == 'L'))) {
      while (end < text.size() && text[end] != text[i]) end += text[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, text.size());
    } else {
      i = end;
      continue;
    }
    for (; i < end; ++i)
      if (code[i] != '\n') code[i] = ' ';
  }
  return code;
}

// Functions and lambdas of more than `most` lines: "first line: lines".
std::vector<std::string> long_functions(const std::string& text, int most) {
  static const std::regex body(R"((\)|\])\s*((const|noexcept|override|final|mutable|->[^()]*|:[^:].*)\s*)*$)");
  static const std::regex other(R"(^\s*(if|for|while|switch|else|catch|do|try|namespace|class|struct|enum|union)\b)");
  const std::string code = code_only(text);
  struct Open {
    bool function;
    int line;
    std::string before;  // of a braced value: the statement goes on after it
  };
  std::vector<Open> open;
  std::vector<std::string> found;
  std::string statement;
  int line = 1, begin = 1;
  for (const char c : code) {
    if (c == '\n') ++line;
    if (c == '{') {
      const bool value = !statement.empty() && (std::isalnum(static_cast<unsigned char>(statement.back())) ||
                                                statement.back() == '>' || statement.back() == '_');
      open.push_back({std::regex_search(statement, body) && !std::regex_search(statement, other), begin,
                      value ? statement + "{" : ""});
    } else if (c == '}' && !open.empty()) {
      const Open closed = open.back();
      open.pop_back();
      const int lines = line - closed.line + 1;
      if (closed.function && lines > most) found.push_back(std::to_string(closed.line) + ": " + std::to_string(lines));
      if (!closed.before.empty()) {
        statement = closed.before + "}";
        begin = closed.line;
        continue;
      }
    }
    if (c == '{' || c == '}' || c == ';') {
      statement.clear();
    } else if (!statement.empty() || !std::isspace(static_cast<unsigned char>(c))) {
      if (statement.empty()) begin = line;
      statement += std::isspace(static_cast<unsigned char>(c)) ? ' ' : c;
    }
  }
  return found;
}

// Running maxima of differences that drop a NaN: std::max, max or fmax with a call of abs among their arguments. A
// member .max() is torch's, which keeps NaN.
int blind_maxima(const std::string& text) {
  static const std::regex begin(R"((^|[^.\w])(std::)?f?max\s*(<[\w: ]+>\s*)?\()"), difference(R"(\bf?abs\s*\()");
  const std::string code = code_only(text);
  int found = 0;
  for (std::sregex_iterator m(code.begin(), code.end(), begin); m != std::sregex_iterator(); ++m) {
    const auto first = code.begin() + m->position() + m->length();
    auto last = first;
    for (int depth = 1; last != code.end() && depth > 0; ++last) depth += *last == '(' ? 1 : *last == ')' ? -1 : 0;
    found += std::regex_search(first, last, difference);
  }
  return found;
}

// Types that are defined at the top of a namespace, with it: "trireme::kernels::Rows".
std::vector<std::string> types(const std::string& text) {
  static const std::regex opens(R"(^namespace ([\w:]*) ?\{)"), closes(R"(^\}  // namespace.*)"),
      defines(R"(^(template <.*> ?)?(struct|class|enum class) (\w+)( final)?( : .*| ?\{.*)?$)");
  std::vector<std::string> spaces, found;
  std::istringstream in(text);
  std::smatch m;
  for (std::string line; std::getline(in, line);)
    if (std::regex_search(line, m, opens))
      spaces.push_back(m[1]);
    else if (std::regex_match(line, closes) && !spaces.empty())
      spaces.pop_back();
    else if (line.find(';') == line.npos && std::regex_match(line, m, defines) && !holds(spaces, "")) {
      std::string name;
      for (const auto& space : spaces) name += space + "::";
      found.push_back(name + std::string(m[3]));
    }
  return found;
}

// Every C++ file below `folder`, as (path from the root, text).
void add_sources(const std::string& folder, std::vector<std::pair<std::string, std::string>>& all) {
  const char* source = std::getenv("TRIREME_SOURCE");
  const fs::path root = source ? source : ".";
  if (!fs::exists(root / folder)) return;
  for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
    const std::string extension = entry.path().extension().string();
    if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") continue;
    std::stringstream text;
    text << std::ifstream(entry.path()).rdbuf();
    all.emplace_back(entry.path().lexically_relative(root).generic_string(), text.str());
  }
}

// The sources of the program.
std::vector<std::pair<std::string, std::string>> sources() {
  std::vector<std::pair<std::string, std::string>> all;
  for (const auto& [folder, allowed] : folders) add_sources(folder, all);
  EXPECT_GT(all.size(), 100u) << "the sources were not found: TRIREME_SOURCE or the current folder";
  return all;
}

TEST(House, IncludesFollowTheTable) {
  for (const auto& [file, text] : sources())
    for (const auto& line : broken_arrows(file, text)) ADD_FAILURE() << line;
}

TEST(House, FilesAndFunctionsStayShort) {
  for (const auto& [file, text] : sources()) {
    const auto lines = std::count(text.begin(), text.end(), '\n');
    EXPECT_LE(lines, file == "trainers/main.cpp" ? 100 : file.ends_with(".h") ? 200 : 400) << file;
    for (const auto& f : long_functions(text, 60)) ADD_FAILURE() << file << ":" << f << " lines in one function";
  }
}

// Of two types of one name the linker keeps one's functions for both.
TEST(House, ATypeHasOneDefinition) {
  std::map<std::string, std::string> where;
  for (const auto& [file, text] : sources())
    if (!file.ends_with(".cpp") && !file.ends_with(".cu"))
      for (const auto& type : types(text)) {
        const auto [at, first] = where.emplace(type, file);
        EXPECT_TRUE(first) << type << " is defined in " << at->second << " and in " << file;
      }
  EXPECT_GT(where.size(), 150u);
  EXPECT_EQ(types("namespace a {\nnamespace b {\nstruct X {\n};\n}  // namespace b\ntemplate <class T>\nclass Y : Z {\n"
                  "struct F;\nstruct Y::Impl {\n}  // namespace a\nnamespace {\nstruct Hidden {\n"),
            (std::vector<std::string>{"a::b::X", "a::Y"}));
}

// std::max(worst, std::abs(a - b)) passes a result that is all NaN: tests/max_difference.h.
TEST(House, TestsSeeNan) {
  std::vector<std::pair<std::string, std::string>> all;
  add_sources("tests", all);
  EXPECT_GT(all.size(), 30u);
  for (const auto& [file, text] : all) EXPECT_EQ(blind_maxima(text), 0) << file << ": a maximum that drops NaN";
  EXPECT_EQ(blind_maxima("w = std::max(w, std::fabs(a -\n b)); w = std::max<double>(w, abs(c)); abs(1);\n"), 2);
  EXPECT_EQ(blind_maxima("for (double d : all) w = fmax(w, abs(d)); w = nan_max(w, std::abs(d));"), 1);
  EXPECT_EQ(blind_maxima("e = (a - b).abs().max() / b.abs(); EXPECT_LE(std::max(1, 2), 3) << abs(d);"), 0);
}

TEST(House, PlantedIncludesAreFound) {
  const auto count = [](const std::string& file, const std::string& text) { return broken_arrows(file, text).size(); };
  EXPECT_EQ(count("comm/a.cpp", "#include <ATen/core/Tensor.h>\n"), 1u);
  EXPECT_EQ(count("comm/a.cpp",
                  "#include <torch/torch.h>\n# include \"data/hdf5.h\"\n#include \"framework/config/config.h\"\n"),
            3u);
  EXPECT_EQ(count("comm/a.h", "#include \"comm/engine/engine.h\"\n"), 1u);
  EXPECT_EQ(count("comm/mpi/a.cpp", "#include \"comm/engine/engine.h\"\n#include \"comm/mpi/group.h\"\n"), 0u);
  EXPECT_EQ(count("comm/mpi/a.cpp", "#include \"comm/cuda/nccl.h\"\n"), 1u);
  EXPECT_EQ(count("comm/new_room/a.cpp", "#include \"comm/error.h\"\n"), 1u);
  EXPECT_EQ(count("data/a.h", "  #include \"framework/config/config.h\"\n"), 1u);
  EXPECT_EQ(count("data/text/a.cpp", "#include \"data/image_text/images.h\"\n"), 1u);
  EXPECT_EQ(count("framework/a.cpp", "#include \"trainers/loop.h\"\n#include \"recipes/mlp/a.h\"\n"), 2u);
  EXPECT_EQ(count("framework/nn/a.h", "#include <torch/torch.h>\n#include <ATen/core/Tensor.h>\n"), 1u);
  EXPECT_EQ(count("framework/a.cpp", "#include <torch/torch.h>\n#include \"data/rng.h\"\n"), 0u);
  EXPECT_EQ(count("framework/optim/a.cpp", "#include \"framework/recipe.h\"\n"), 1u);
  EXPECT_EQ(count("recipes/b/b.cpp", "#include \"recipes/a/loss.h\"\n#include \"recipes/b/loss.h\"\n"), 1u);
  EXPECT_EQ(count("recipes/b/b.cpp", "#include \"trainers/loop.h\"\n"), 1u);
  EXPECT_EQ(count("trainers/a.cpp", "#include \"bench/bench.h\"\n#include \"recipes/a/a.h\"\n"), 2u);
  EXPECT_EQ(count("trainers/a.cpp", "#include \"tests/mpi_harness.h\"\n// #include \"recipes/b/loss.h\"\n"), 1u);
}

TEST(House, PlantedLongFunctionsAreFound) {
  const std::string ten = "  a = \"{\";  // }\n  if (x) { b(); }\n\n\n\n\n\n\n\n\n";
  EXPECT_EQ(long_functions("int f(int a) {\n" + ten + "}\n", 11), std::vector<std::string>{"1: 12"});
  EXPECT_EQ(long_functions("int f(int a) {\n" + ten + "}\n", 12), std::vector<std::string>{});
  EXPECT_EQ(long_functions("\nstruct A {\n  A(int x) : x_{x} {\n" + ten + "  }\n};\n", 5).size(), 1u);
  EXPECT_EQ(long_functions("auto f = [&](int a) -> int {\n" + ten + "};\n", 5).size(), 1u);
  EXPECT_EQ(long_functions("namespace a {\nclass B : C {\n" + ten + "};\n}\n", 5).size(), 0u);
}

}  // namespace
}  // namespace trireme

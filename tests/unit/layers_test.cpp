// links: comm
// The arrows between folders, read off the include lines: comm <- compression <- framework <- trainers <-
// recipes, and comm <- data <- framework.
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

// Folder -> the folders its files may include.
const std::map<std::string, std::set<std::string>> arrows = {
    {"comm", {"comm"}},
    {"compression", {"comm", "compression"}},
    {"data", {"comm", "data"}},
    {"framework", {"comm", "compression", "data", "framework"}},
    {"trainers", {"comm", "compression", "data", "framework", "trainers", "bench"}},
    {"bench", {"comm", "compression", "data", "framework", "trainers", "recipes", "bench"}},
    {"recipes", {"comm", "compression", "data", "framework", "trainers", "recipes"}},
};
const std::set<std::string> without_torch = {"comm", "compression"};

std::string first_part(const std::string& path) { return path.substr(0, path.find('/')); }

// What is wrong with the includes of `file` ("folder/name.h"), whose text is given.
std::vector<std::string> broken_arrows(const std::string& file, const std::string& text) {
  static const std::regex include(R"(^\s*#\s*include\s*(["<])([^">]+)[">])");
  const std::string folder = first_part(file);
  const bool public_header = file.ends_with(".h") && file != "framework/base/torch_pch.h";
  std::vector<std::string> broken;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::smatch match;
    if (!std::regex_search(line, match, include)) continue;
    const std::string target = match[2], top = first_part(target);
    const bool torch = top == "torch" || top == "ATen" || top == "c10" || top == "caffe2";
    std::string why;
    if (torch && without_torch.contains(folder))
      why = "never sees torch";
    else if (torch && public_header && target != "ATen/core/Tensor.h")
      why = "is a public header: only ATen/core/Tensor.h of torch";
    else if ((arrows.contains(top) || top == "tests") && !arrows.at(folder).contains(top))
      why = "may not include " + top + "/";
    else if (folder == "recipes" && top == "recipes" && fs::path(target).parent_path() != fs::path(file).parent_path())
      why = "is a recipe of its own";
    if (!why.empty()) broken.push_back(file + " includes " + target + ", but it " + why);
  }
  return broken;
}

TEST(Layers, IncludesFollowTheArrows) {
  const char* source = std::getenv("TRIREME_SOURCE");
  const fs::path root = source ? source : ".";
  std::size_t files = 0;
  for (const auto& [folder, allowed] : arrows) {
    if (!fs::exists(root / folder)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") continue;
      std::stringstream text;
      text << std::ifstream(entry.path()).rdbuf();
      ++files;
      for (const auto& line : broken_arrows(entry.path().lexically_relative(root).generic_string(), text.str()))
        ADD_FAILURE() << line;
    }
  }
  EXPECT_GT(files, 100u) << "the sources were not found below " << root;
}

TEST(Layers, PlantedIncludesAreFound) {
  const auto count = [](const std::string& file, const std::string& text) { return broken_arrows(file, text).size(); };
  EXPECT_EQ(count("comm/a.cpp", "#include <ATen/core/Tensor.h>\n"), 1u);
  EXPECT_EQ(
      count("comm/a.cpp", "#include <torch/torch.h>\n# include \"data/hdf5.h\"\n#include \"framework/config/config.h\"\n"),
      3u);
  EXPECT_EQ(count("data/a.h", "  #include \"framework/config/config.h\"\n"), 1u);
  EXPECT_EQ(count("framework/a.cpp", "#include \"trainers/loop.h\"\n#include \"recipes/mlp/a.h\"\n"), 2u);
  EXPECT_EQ(count("framework/nn/a.h", "#include <torch/torch.h>\n#include <ATen/core/Tensor.h>\n"), 1u);
  EXPECT_EQ(count("framework/a.cpp", "#include <torch/torch.h>\n#include \"data/rng.h\"\n"), 0u);
  EXPECT_EQ(count("recipes/b/b.cpp", "#include \"recipes/a/loss.h\"\n#include \"recipes/b/loss.h\"\n"), 1u);
  EXPECT_EQ(count("trainers/a.cpp", "#include \"tests/mpi_harness.h\"\n// #include \"recipes/b/loss.h\"\n"), 1u);
}

}  // namespace
}  // namespace trireme

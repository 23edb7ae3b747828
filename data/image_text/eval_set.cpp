#include "data/image_text/eval_set.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/text/text.h"

#include <filesystem>

namespace trireme {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t max_list = 1 << 24;

std::string read_text(const fs::path& file) {
  const auto bytes = read_file(file.string(), max_list);
  const auto text = decode_text({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!text) throw DataError(file.string(), "is no text", "write it as UTF-8");
  return text->text;
}

// Without white space at both ends, as Python's strip().
std::string stripped(const std::string& line) {
  const auto first = line.find_first_not_of(" \t\r\n\f\v");
  return first == line.npos ? "" : line.substr(first, line.find_last_not_of(" \t\r\n\f\v") - first + 1);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find_first_of("\r\n", begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + (text.compare(end, 2, "\r\n") == 0 ? 2 : 1);
  }
  return lines;
}

std::vector<std::string> list_if_there(const fs::path& file) {
  std::error_code error;
  return fs::exists(file, error) ? read_list(file.string()) : std::vector<std::string>();
}

// Where the shards are: FOLDER/test, or FOLDER where that is a split itself.
fs::path split_of(const std::string& folder) {
  std::error_code error;
  const fs::path path = real_path(folder);
  return fs::exists(path / "nshards.txt", error) ? path : path / "test";
}

std::string shards_of(const fs::path& test) {
  const fs::path file = test / "nshards.txt";
  const std::string text = stripped(read_text(file));
  if (text.empty() || text.size() > 6 || text.find_first_not_of("0123456789") != text.npos || std::stoi(text) == 0)
    throw DataError(file.string(), "says `" + text.substr(0, 40) + "`, not a number of shards", "write 1, 2, ...");
  return (test / ("{0.." + std::to_string(std::stoi(text) - 1) + "}.tar")).string();
}

std::vector<std::string> captions_in(const std::string& text) {
  std::vector<std::string> captions;
  const auto decoded = decode_text(text);
  for (auto& line : lines_of(decoded ? decoded->text : ""))
    if (!stripped(line).empty()) captions.push_back(std::move(line));
  return captions;
}

}  // namespace

std::vector<std::string> read_list(const std::string& file) {
  std::vector<std::string> list;
  for (const auto& line : lines_of(read_text(file))) list.push_back(stripped(line));
  while (!list.empty() && list.back().empty()) list.pop_back();
  return list;
}

bool is_eval_set(const std::string& folder) {
  std::error_code error;
  return fs::exists(split_of(folder) / "nshards.txt", error);
}

EvalSet open_eval_set(const std::string& folder, double broken_share) {
  const fs::path test = split_of(folder), root = test.parent_path();
  std::error_code error;
  if (!fs::exists(test / "nshards.txt", error))
    throw DataError(folder, "has no test/nshards.txt", "name a folder in CLIP_benchmark's WebDataset layout");
  EvalSet set;
  set.folder = root.string();
  set.name = root.filename().string();
  std::string type = fs::exists(root / "dataset_type.txt", error) ? stripped(read_text(root / "dataset_type.txt")) : "";
  for (char& c : type) c = char(std::tolower(static_cast<unsigned char>(c)));
  if (type == "multilabel")
    throw DataError((root / "dataset_type.txt").string(), "says multilabel, which is not read here",
                    "use a set for classification or retrieval");
  set.retrieval = type == "retrieval";
  TarsOptions options;
  options.need_caption = set.retrieval;
  options.held_out = 1;
  options.broken_share = broken_share;
  options.whole = true;
  set.pairs = std::make_unique<Tars>(shards_of(test), options);
  const std::int64_t n = set.pairs->size();
  if (set.retrieval) {
    // A .txt holds a caption a line, a .json one.
    for (std::int64_t i = 0; i < n; ++i)
      set.captions.push_back(set.pairs->has_json_caption(i) ? std::vector{set.pairs->caption(i)}
                                                            : captions_in(set.pairs->raw_text(i)));
    return set;
  }
  set.classes = list_if_there(root / "classnames.txt");
  set.templates = list_if_there(root / "zeroshot_classification_templates.txt");
  for (std::int64_t i = 0; i < n; ++i) {
    const auto cls = set.pairs->class_id(i);
    if (cls < 0 || (!set.classes.empty() && cls >= std::int64_t(set.classes.size())))
      throw DataError((root / "classnames.txt").string(),
                      "sample " + std::to_string(i) + " of the tars is of class " + std::to_string(cls) + ", and " +
                          std::to_string(set.classes.size()) + " are named",
                      "name every class in the order of its number");
  }
  return set;
}

}  // namespace trireme

#include "data/image_text/folder.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/text/text.h"
#include "data/text/unicode.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <memory>

namespace trireme {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t max_caption_file = 1 << 16, max_table = std::int64_t(1) << 30;
constexpr std::size_t max_caption_characters = 1000;

std::string lower_case(std::string s) {
  for (char& c : s) c = char(std::tolower(static_cast<unsigned char>(c)));
  return s;
}

bool is_picture(const fs::path& p) {
  const std::string e = lower_case(p.extension().string());
  return e == ".png" || e == ".jpg" || e == ".jpeg";
}

// White space collapsed, control characters gone.
std::string clean_caption(std::string_view raw) {
  std::u32string out;
  bool gap = false;
  std::string text = utf8_or_latin1(raw);
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  for (char32_t c : decode_utf8(text)) {
    if (is_space(c) || c < 0x20 || c == 0x7F) {
      gap = !out.empty();
      continue;
    }
    if (gap) out += U' ';
    gap = false;
    out += c;
    if (out.size() >= max_caption_characters) break;
  }
  return encode_utf8(out);
}

bool below(const fs::path& root, const fs::path& p) {
  const auto relative = p.lexically_relative(root);
  return !relative.empty() && *relative.begin() != "..";
}

// The picture's real place, which must lie below `root` (itself canonical). `place` names the row or file.
fs::path inside(const fs::path& root, const fs::path& p, const std::string& place) {
  const fs::path full = p.is_absolute() ? p : root / p;
  std::error_code error;
  const fs::path real = fs::weakly_canonical(full, error);
  if (error || !below(root, real))
    throw DataError(place, "`" + p.string() + "` leads out of " + root.string(), "copy the picture into the folder");
  return real;
}

struct Builder {
  PrepareSpec spec;
  std::shared_ptr<std::vector<std::string>> files = std::make_shared<std::vector<std::string>>();

  void add(const std::string& file, std::string caption, std::string category) {
    if (caption.empty()) {
      spec.skipped.push_back(file + ": no caption");
      return;
    }
    files->push_back(file);
    spec.items.push_back({file, std::move(caption), std::move(category)});
  }
  PrepareSpec finish() {
    spec.decode = [files = files](std::size_t i) { return load_image((*files)[i]); };
    return std::move(spec);
  }
};

PrepareSpec from_folder(const fs::path& root) {
  std::vector<fs::path> pictures;
  for (const auto& entry : fs::recursive_directory_iterator(root, fs::directory_options::skip_permission_denied))
    if (is_picture(entry.path()) && !entry.is_directory()) pictures.push_back(entry.path());
  std::sort(pictures.begin(), pictures.end());
  Builder b;
  for (const auto& p : pictures) {
    const fs::path real = inside(root, p, p.string());
    fs::path text = p;
    text.replace_extension(".txt");
    std::error_code error;
    std::string caption;
    if (fs::exists(text, error)) {
      const auto bytes = read_file(inside(root, text, text.string()).string(), max_caption_file);
      caption = clean_caption({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    }
    const std::string category = p.parent_path().lexically_relative(root).generic_string();
    b.add(real.string(), std::move(caption), category == "." ? "" : category);
  }
  if (b.files->empty() && b.spec.skipped.empty())
    throw DataError(root.string(), "no PNG or JPEG pictures", "put pictures there, each with a .txt caption beside it");
  return b.finish();
}

PrepareSpec from_table(const fs::path& file) {
  const auto bytes = read_file(file.string(), max_table);
  std::string text = utf8_or_latin1({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  const std::string first = text.substr(0, text.find('\n'));
  const char separator = first.find('\t') != first.npos ? '\t' : ',';
  std::vector<std::int64_t> lines;
  const auto rows = parse_table(text, separator, file.string(), &lines);

  std::size_t path_column = std::string::npos, title_column = std::string::npos;
  if (!rows.empty())
    for (std::size_t c = 0; c < rows[0].size(); ++c) {
      const std::string name = lower_case(clean_caption(rows[0][c]));
      if (name == "filepath") path_column = c;
      if (name == "title") title_column = c;
    }
  if (path_column == std::string::npos || title_column == std::string::npos)
    throw DataError(file.string() + ":1", "the header names no columns `filepath` and `title`",
                    "give the table these two columns, separated by tabs or commas");

  const fs::path root = fs::canonical(file.parent_path().empty() ? fs::path(".") : file.parent_path());
  Builder b;
  for (std::size_t r = 1; r < rows.size(); ++r) {
    const std::string place = file.string() + ":" + std::to_string(lines[r]);
    if (rows[r].size() <= std::max(path_column, title_column))
      throw DataError(
          place, "has " + std::to_string(rows[r].size()) + " columns, the header " + std::to_string(rows[0].size()),
          "quote fields that hold the separator");
    const std::string& path = rows[r][path_column];
    if (path.empty() || path.find('\0') != path.npos)
      throw DataError(place, "empty or invalid file path", "name the picture");
    const fs::path real = inside(root, path, place);
    const std::string category = real.parent_path().lexically_relative(root).generic_string();
    b.add(real.string(), clean_caption(rows[r][title_column]), category == "." ? "" : category);
  }
  if (rows.size() < 2) throw DataError(file.string(), "has a header and no rows", "list the pictures");
  return b.finish();
}

}  // namespace

std::vector<std::vector<std::string>> parse_table(std::string_view text, char separator, const std::string& name,
                                                  std::vector<std::int64_t>* lines) {
  std::vector<std::vector<std::string>> rows;
  std::int64_t line = 1;
  for (std::size_t i = 0; i < text.size();) {
    const std::int64_t start = line;
    std::vector<std::string> row(1);
    bool quoted = false, ended = false;
    while (i < text.size() && !ended) {
      const char c = text[i++];
      if (c == '\n') ++line;
      if (quoted) {
        if (c == '"' && i < text.size() && text[i] == '"')
          row.back() += text[i++];
        else if (c == '"')
          quoted = false;
        else
          row.back() += c;
      } else if (c == '"' && row.back().empty()) {
        quoted = true;
      } else if (c == separator) {
        row.emplace_back();
      } else if (c == '\n' || (c == '\r' && (i == text.size() || text[i] == '\n'))) {
        ended = c == '\n';
      } else {
        row.back() += c;
      }
    }
    if (quoted)
      throw DataError(name + ":" + std::to_string(start), "a quoted field is not closed",
                      "double the quotes inside fields");
    if (row.size() == 1 && row[0].empty()) continue;
    rows.push_back(std::move(row));
    if (lines) lines->push_back(start);
  }
  return rows;
}

PrepareSpec folder_data(const std::string& from) {
  std::error_code error;
  const fs::path path = from;
  if (!fs::exists(path, error)) throw DataError(from, "no such folder or table", "check --from");
  PrepareSpec spec = fs::is_directory(path, error) ? from_folder(fs::canonical(path)) : from_table(path);
  spec.name = "folder";
  spec.source = from;
  return spec;
}

}  // namespace trireme

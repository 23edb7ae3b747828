#include "data/image_text/table.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/own_pictures.h"
#include "data/text/text.h"

#include <cctype>
#include <filesystem>

namespace trireme {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t max_table = std::int64_t(1) << 30;

// Without white space, in lower case.
std::string folded(std::string_view text) {
  std::string out;
  for (const char letter : text)
    if (!std::isspace(static_cast<unsigned char>(letter)))
      out += char(std::tolower(static_cast<unsigned char>(letter)));
  return out;
}

// Position of the only column of that name; throws when there is none or more than one.
std::size_t column(const std::vector<TableRow>& rows, const std::string& name, const std::string& file) {
  std::size_t found = std::string::npos;
  for (std::size_t c = 0; !rows.empty() && c < rows[0].fields.size(); ++c) {
    if (folded(rows[0].fields[c]) != name) continue;
    if (found != std::string::npos)
      throw DataError(file + ":1", "the header names `" + name + "` twice", "leave one of the columns");
    found = c;
  }
  if (found == std::string::npos)
    throw DataError(file + ":1", "the header names no column `" + name + "`",
                    "it needs columns for paths and captions, `filepath` and `title` unless you say others");
  return found;
}

std::string fields_of(std::size_t n) { return std::to_string(n) + (n == 1 ? " field" : " fields"); }

// File names are bytes: as they stand, else as the text that they spell.
std::string path_in(const fs::path& root, const std::string& bytes) {
  std::error_code error;
  if (fs::exists(root / bytes, error)) return bytes;
  const auto text = decode_text(bytes);
  return text && fs::exists(root / text->text, error) ? text->text : bytes;
}

}  // namespace

std::vector<TableRow> parse_table(std::string_view text, char separator, const std::string& name) {
  std::vector<TableRow> rows;
  std::int64_t line = 1;
  for (std::size_t i = 0; i < text.size();) {
    TableRow row{{""}, line, false};
    bool quoted = false, closed = false, ended = false;  // closed: behind the field's closing quote
    while (i < text.size() && !ended) {
      const char c = text[i++];
      std::string& field = row.fields.back();
      if (c == '\n') ++line;
      if (quoted) {
        if (c == '"' && i < text.size() && text[i] == '"')
          field += text[i++];
        else if (c == '"')
          quoted = false, closed = true;
        else
          field += c;
      } else if (c == separator) {
        row.fields.emplace_back();
        closed = false;
      } else if (c == '\n' || (c == '\r' && (i == text.size() || text[i] == '\n'))) {
        ended = c == '\n';
      } else if (closed) {
        row.surplus |= c != ' ' && c != '\t';
      } else if (c == '"' && field.empty()) {
        quoted = true;
      } else {
        field += c;
      }
    }
    if (quoted)
      throw DataError(name + ":" + std::to_string(row.line), "a quoted field is not closed",
                      "double the quotes inside fields");
    if (row.fields.size() > 1 || !row.fields[0].empty() || row.surplus) rows.push_back(std::move(row));
  }
  return rows;
}

PrepareSpec table_data(const std::string& file, const std::string& picture, const std::string& caption) {
  const auto bytes = read_file(file, max_table);
  std::string_view raw(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const bool wide = raw.starts_with("\xFF\xFE") || raw.starts_with("\xFE\xFF");
  const auto text = wide ? decode_text(raw) : std::nullopt;
  if (wide && !text) throw DataError(file, "is broken UTF-16", "save it as UTF-8");
  if (text) raw = text->text;
  if (raw.starts_with("\xEF\xBB\xBF")) raw.remove_prefix(3);
  // Otherwise each row is decoded by itself: one row in another encoding must not change how all others are read.
  const char separator = raw.substr(0, raw.find('\n')).find('\t') != raw.npos ? '\t' : ',';
  const auto rows = parse_table(raw, separator, file);
  const std::size_t path_column = column(rows, folded(picture), file),
                    title_column = column(rows, folded(caption), file);
  if (rows.size() < 2) throw DataError(file, "has a header and no rows", "list the pictures");

  OwnPictures pictures(fs::path(real_path(file)).parent_path());  // where it lies, not where a link leads
  if (text) pictures.note("the table is UTF-16");
  for (std::size_t r = 1; r < rows.size(); ++r) {
    const auto& fields = rows[r].fields;
    const std::string place = file + ":" + std::to_string(rows[r].line);
    if (rows[r].surplus) {
      pictures.skip(place, "text after a closing quote; double the quotes inside fields");
    } else if (fields.size() != rows[0].fields.size()) {
      pictures.skip(place, "has " + fields_of(fields.size()) + ", the header " + fields_of(rows[0].fields.size()) +
                               "; quote fields that hold the separator");
    } else if (fields[path_column].empty() || fields[path_column].find('\0') != std::string::npos) {
      pictures.skip(place, "empty or invalid file path");
    } else {
      pictures.add(path_in(pictures.root(), fields[path_column]), fields[title_column], place);
    }
  }
  PrepareSpec spec = pictures.finish();
  spec.source = real_path(file);
  return spec;
}

}  // namespace trireme

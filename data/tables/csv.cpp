#include "data/tables/csv.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/gzip.h"
#include "data/rng.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>
#include <unordered_map>

namespace trireme {
namespace {

constexpr std::int64_t most_bytes = std::int64_t{16} << 30;

[[noreturn]] void refuse(const std::string& file, std::int64_t line, const std::string& what,
                         const std::string& cure = "every line has the fields that the first one names") {
  throw DataError(file + ":" + std::to_string(line), what, cure);
}

// Fields of the line that begins at `at`, which moves behind its end; `line` counts the ends of lines within quotes.
std::vector<std::string> fields_of(const std::string& text, std::size_t& at, char separator, const std::string& file,
                                   std::int64_t& line) {
  const std::int64_t first = line;
  std::vector<std::string> fields(1);
  while (at < text.size()) {
    const char c = text[at++];
    if (c == '\n') break;
    if (c == '\r' && at < text.size() && text[at] == '\n') continue;
    if (c == separator) {
      fields.emplace_back();
    } else if (c == '"' && fields.back().empty()) {
      for (;; ++at) {
        if (at >= text.size())
          refuse(file, first, "has a quote that does not end", "close it, or write \"\" for a quote in a word");
        line += text[at] == '\n';
        if (text[at] != '"') {
          fields.back() += text[at];
        } else if (at + 1 < text.size() && text[at + 1] == '"') {
          fields.back() += text[++at];
        } else {
          break;
        }
      }
      ++at;
    } else {
      fields.back() += c;
    }
  }
  return fields;
}

bool number(const std::string& s, double& value) {
  char* end = nullptr;
  value = std::strtod(s.c_str(), &end);
  return !s.empty() && end == s.c_str() + s.size() && std::isfinite(value);
}

bool blank(const std::string& s) { return s.empty() || s == "NA" || s == "NaN" || s == "nan"; }

bool all_numbers(const std::vector<std::string>& column) {
  double value = 0;
  return std::all_of(column.begin(), column.end(), [&](const std::string& s) { return blank(s) || number(s, value); });
}

struct Sparse {
  Table table;
  std::vector<std::vector<std::int32_t>> bags;  // one a line
  std::vector<std::string> words;
  std::vector<std::int64_t> counts;
};

Sparse numbered(const std::vector<std::string>& column, const std::string& name, const std::string& pooling) {
  Sparse s;
  s.table = {name, 0, 1, pooling};
  std::unordered_map<std::string, std::int32_t> ids;
  for (const auto& cell : column) {
    s.bags.emplace_back();
    for (std::size_t at = 0; !blank(cell) && at <= cell.size();) {
      const std::size_t end = std::min(cell.find('|', at), cell.size());
      const std::string word = cell.substr(at, end - at);
      at = end + 1;
      if (word.empty()) continue;
      const auto [found, fresh] = ids.emplace(word, std::int32_t(s.words.size()));
      if (fresh) s.words.push_back(word), s.counts.push_back(0);
      ++s.counts[std::size_t(found->second)];
      s.bags.back().push_back(found->second);
    }
    s.table.width = std::max(s.table.width, std::int64_t(s.bags.back().size()));
  }
  s.table.rows = std::max<std::int64_t>(1, std::int64_t(s.words.size()));
  return s;
}

std::vector<float> standardised(const std::vector<std::string>& column, const std::vector<std::int64_t>& order,
                                const std::vector<std::int64_t>& lines, std::int64_t train, const std::string& name,
                                const std::string& file) {
  std::vector<double> x;
  double sum = 0, squares = 0, n = 0;
  for (std::int64_t k = 0; k < std::int64_t(order.size()); ++k) {
    const std::int64_t i = order[std::size_t(k)];
    const std::string& cell = column[std::size_t(i)];
    double value = std::nan("");
    if (!blank(cell) && !number(cell, value))
      throw DataError(file + ":" + std::to_string(lines[std::size_t(i)]),
                      "column " + name + " is dense, and '" + cell.substr(0, 40) + "' is no number",
                      "name it in --sparse");
    x.push_back(value);
    if (k < train && std::isfinite(value)) sum += value, squares += value * value, ++n;
  }
  const double mean = n > 0 ? sum / n : 0, variance = n > 0 ? squares / n - mean * mean : 0;
  const double scale = variance > 0 ? 1 / std::sqrt(variance) : 1;
  std::vector<float> out;
  for (const double v : x) out.push_back(std::isfinite(v) ? float((v - mean) * scale) : 0.0f);
  return out;
}

std::vector<std::int64_t> order_of(std::int64_t n, const CsvSpec& spec) {
  if (spec.random_test) return permutation(n, Rng(spec.seed, "csv/split"));
  std::vector<std::int64_t> order;
  for (std::int64_t i = 0; i < n; ++i) order.push_back(i);
  return order;
}

std::vector<std::uint8_t> labels_of(const std::vector<std::string>& column, const std::vector<std::int64_t>& order,
                                    const std::vector<std::int64_t>& lines, const CsvSpec& spec) {
  std::vector<std::uint8_t> labels;
  for (const std::int64_t i : order) {
    const std::string& s = column[std::size_t(i)];
    const bool one = s == "1" || s == "true" || s == "True" || s == "1.0";
    if (!one && s != "0" && s != "false" && s != "False" && s != "0.0")
      throw DataError(spec.from + ":" + std::to_string(lines[std::size_t(i)]),
                      "label " + spec.label + " is '" + s.substr(0, 40) + "'", "labels are 0 or 1");
    labels.push_back(one);
  }
  return labels;
}

// What the user did not name: numbers are dense, all else is sparse.
void choose_columns(const Csv& csv, CsvSpec& spec) {
  if (!spec.dense.empty() || !spec.sparse.empty()) return;
  for (std::size_t c = 0; c < csv.names.size(); ++c)
    if (csv.names[c] != spec.label) (all_numbers(csv.columns[c]) ? spec.dense : spec.sparse).push_back(csv.names[c]);
}

void write_samples(TableFileWriter& writer, const std::vector<std::int64_t>& order,
                   const std::vector<std::vector<float>>& dense, const std::vector<Sparse>& sparse,
                   const std::vector<std::uint8_t>& labels) {
  constexpr std::size_t block = 65536;
  std::vector<float> x;
  std::vector<std::int32_t> ids;
  for (std::size_t first = 0; first < order.size(); first += block) {
    const std::size_t end = std::min(order.size(), first + block);
    x.clear(), ids.clear();
    for (std::size_t k = first; k < end; ++k) {
      for (const auto& column : dense) x.push_back(column[k]);
      for (const auto& s : sparse) {
        const auto& bag = s.bags[std::size_t(order[k])];
        ids.insert(ids.end(), bag.begin(), bag.end());
        ids.insert(ids.end(), std::size_t(s.table.width) - bag.size(), -1);
      }
    }
    writer.add(std::int64_t(end - first), x.data(), ids.data(), labels.data() + first);
  }
}

}  // namespace

const std::vector<std::string>& Csv::at(const std::string& name, const std::string& file) const {
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) {
    std::string known;
    for (const auto& n : names) known += (known.empty() ? "" : ", ") + n;
    throw DataError(file, "has no column " + name, "it has " + known.substr(0, 400));
  }
  return columns[std::size_t(found - names.begin())];
}

Csv read_csv(const std::string& path) {
  const std::vector<std::uint8_t> bytes = read_file(path, most_bytes);
  const bool packed = path.ends_with(".gz");
  const std::string text = packed ? gunzip(bytes, path, most_bytes) : std::string(bytes.begin(), bytes.end());
  const char separator = path.ends_with(".tsv") || path.ends_with(".tsv.gz") ? '\t' : ',';
  Csv csv;
  std::size_t at = text.starts_with("\xef\xbb\xbf") ? 3 : 0;  // the byte order mark of spreadsheets
  std::int64_t line = 1;
  csv.names = fields_of(text, at, separator, path, line);
  csv.columns.resize(csv.names.size());
  if (std::set<std::string>(csv.names.begin(), csv.names.end()).size() != csv.names.size())
    refuse(path, 1, "names a column twice", "rename one");
  while (at < text.size()) {
    const std::int64_t first = ++line;
    std::vector<std::string> fields = fields_of(text, at, separator, path, line);
    if (fields.size() == 1 && fields[0].empty()) continue;
    if (fields.size() != csv.names.size())
      refuse(
          path, first,
          "has " + std::to_string(fields.size()) + " fields, the first line names " + std::to_string(csv.names.size()));
    csv.lines.push_back(first);
    for (std::size_t c = 0; c < fields.size(); ++c) csv.columns[c].push_back(std::move(fields[c]));
  }
  return csv;
}

TableFileInfo prepare_csv(const CsvSpec& spec) { return prepare_csv(spec, read_csv(spec.from)); }

TableFileInfo prepare_csv(const CsvSpec& given, const Csv& csv) {
  CsvSpec spec = given;
  const auto n = csv.rows();
  const auto held_out = std::int64_t(std::ceil(spec.test * double(n)));
  if (n - held_out < 1) throw DataError(spec.from, "has " + std::to_string(n) + " lines, too few", "add samples");
  choose_columns(csv, spec);
  if (spec.sparse.empty())
    throw DataError(spec.from, "has no sparse column", "name one in --sparse, even if it holds numbers");
  const auto order = order_of(n, spec);
  const auto labels = labels_of(csv.at(spec.label, spec.from), order, csv.lines, spec);
  TableFileInfo info{spec.name, spec.dense, {}, n, {0, n - held_out}, {n - held_out, n}, {}, {}, spec.source};
  std::vector<std::vector<float>> dense;
  for (const auto& name : spec.dense)
    dense.push_back(standardised(csv.at(name, spec.from), order, csv.lines, n - held_out, name, spec.from));
  std::vector<Sparse> sparse;
  std::int64_t width = 0;
  for (const auto& entry : spec.sparse) {
    const bool whole = std::find(csv.names.begin(), csv.names.end(), entry) != csv.names.end();  // a name with a ':'
    const std::string name = whole ? entry : entry.substr(0, entry.rfind(':')),
                      pooling = entry.size() > name.size() ? entry.substr(name.size() + 1) : "sum";
    if (pooling != "sum" && pooling != "mean")
      throw UsageError("--sparse", "'" + entry + "' asks for pooling '" + pooling + "'", "choose sum or mean");
    sparse.push_back(numbered(csv.at(name, spec.from), name, pooling));
    info.tables.push_back(sparse.back().table);
    width += sparse.back().table.width;
  }
  TableFileWriter writer(spec.out, n, std::int64_t(dense.size()), width, false);
  write_samples(writer, order, dense, sparse, labels);
  for (const auto& s : sparse) writer.values(s.table.name, s.words), writer.counts(s.table.name, s.counts);
  writer.finish(info);
  return info;
}

TableFileInfo prepare_flights(const std::string& from, const std::string& out, const std::string& source) {
  const Csv all = read_csv(from);
  const auto& delay = all.at("arr_delay", from);
  CsvSpec spec;
  spec.name = "flights", spec.from = from, spec.out = out, spec.label = "late", spec.random_test = true,
  spec.source = source;
  spec.dense = {"distance", "sched_dep_time", "sched_arr_time", "day"};
  spec.sparse = {"month", "hour", "carrier", "flight", "tailnum", "origin", "dest"};
  const std::vector<std::pair<std::string, std::string>> pairs{{"month", "day"}, {"origin", "dest"}};
  Csv known;
  known.names = spec.dense;
  known.names.insert(known.names.end(), spec.sparse.begin(), spec.sparse.end());
  known.columns.resize(known.names.size());
  std::vector<std::string> late;
  std::vector<std::vector<std::string>> joined(pairs.size());
  for (std::int64_t i = 0; i < all.rows(); ++i) {
    double minutes = 0;
    if (!number(delay[std::size_t(i)], minutes)) continue;  // cancelled, or sent elsewhere
    late.push_back(minutes > 15 ? "1" : "0");
    known.lines.push_back(all.lines[std::size_t(i)]);
    for (std::size_t c = 0; c < known.names.size(); ++c)
      known.columns[c].push_back(all.at(known.names[c], from)[std::size_t(i)]);
    for (std::size_t k = 0; k < pairs.size(); ++k)
      joined[k].push_back(all.at(pairs[k].first, from)[std::size_t(i)] + " " +
                          all.at(pairs[k].second, from)[std::size_t(i)]);
  }
  for (std::size_t k = 0; k < pairs.size(); ++k) {
    spec.sparse.push_back(pairs[k].first + " and " + pairs[k].second);
    known.names.push_back(spec.sparse.back());
    known.columns.push_back(std::move(joined[k]));
  }
  known.names.push_back("late");
  known.columns.push_back(std::move(late));
  return prepare_csv(spec, known);
}

}  // namespace trireme

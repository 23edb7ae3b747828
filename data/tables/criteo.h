// Criteo's click logs: tab-separated lines of a label, 13 integers and 26 hexadecimal words, any of them blank.
//
// The reference's binary form, FILE.bin, says the same in records of 40 little-endian i32, categories below 0 being
// malformed.
//
// Integers below 0 are 0; dense values are log(x + 1). A category is its word modulo max_ind_range, where that is set;
// ids are given in the order of first appearance.
#pragma once
#include "data/tables/file.h"

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

constexpr int criteo_dense = 13, criteo_tables = 26;

// Parsed lines, before ids are given.
struct CriteoBlock {
  std::vector<std::uint8_t> label;
  std::vector<float> dense;          // 13 a line
  std::vector<std::uint32_t> words;  // 26 a line, modulo max_ind_range
  struct Bad {
    std::int64_t line;  // within the block, from 0
    std::string why;
  };
  std::vector<Bad> bad;  // the first few
  std::int64_t bad_lines = 0, lines = 0;
};
// text: whole lines. Malformed ones are left out. Clears `out` first; keeps its memory.
void parse_criteo(std::string_view text, std::uint32_t max_ind_range, CriteoBlock& out);

// The same of whole records, a line each.
constexpr std::size_t criteo_record = 4 * (1 + criteo_dense + criteo_tables);
void parse_criteo_records(std::string_view records, std::uint32_t max_ind_range, CriteoBlock& out);

struct CriteoSpec {
  std::vector<std::string> files;  // in the order of days; one is cut into seven days of equal length; .bin: records
  std::string out;                 // prepared file
  std::int64_t max_ind_range = 0;  // 0: words as they are
  double drop_negatives = 0;       // share of the negatives left out, by (seed, line)
  double broken_share = 0.001;     // more malformed lines than this are an error
  std::uint64_t seed = 1;
  int threads = 1;
  std::string source;                                                   // see TableFileInfo
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // bytes
};

struct CriteoReport {
  TableFileInfo info;
  std::int64_t lines = 0, bad_lines = 0, dropped = 0, bytes = 0;
  std::vector<std::string> bad;     // the first few, with file and line
  double seconds = 0, parsing = 0;  // of all; of the parser alone, summed over its threads
};

// Train: all days but the last; test: the first half of the last, validation: the rest. DataError naming file and line
// for too many malformed lines, and a file of records that ends within one.
CriteoReport prepare_criteo(const CriteoSpec& spec);

}  // namespace trireme

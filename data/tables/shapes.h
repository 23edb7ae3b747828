// The public shapes of the Criteo data sets: rows of each table, how unequal its ids are, and the class of error bound
// that SC'24 (arXiv 2407.04272) published for it.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct ShapeTable {
  std::int64_t rows;
  double s;                       // Zipf exponent that fits published dumps
  char bound;                     // T tight, B base, L loose; 0: not published
  std::vector<double> head = {};  // shares of the most frequent ids, where they were counted
  double head_s = 0, head_q = 0;  // of the ids behind them
  std::int64_t width = 1;         // ids of a sample
};

struct Shape {
  std::string_view name;
  std::int64_t dense, dim;
  std::vector<std::int64_t> bottom, top;  // hidden layers; the bottom ends in dim, the top in 1
  std::string_view encoders;              // the artifact's choice for each table: L vector-LZ, H Huffman; or empty
  std::vector<ShapeTable> tables;
};

// kaggle, terabyte (10M cap), mlperf_v1 (40M cap), mlperf_v2 (the same with bags of up to 100 ids); null: no such name.
const Shape* shape_named(std::string_view name);

// Rows by 1 / scale where there are more than 1,000; the order by size stays.
std::int64_t scaled_rows(std::int64_t rows, double scale);

}  // namespace trireme

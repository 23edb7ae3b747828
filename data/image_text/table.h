// A table of pictures in OpenCLIP's form: columns `filepath` and `title`, separated by tabs or commas, RFC 4180 quotes.
#pragma once
#include "data/image_text/prepared.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct TableRow {
  std::vector<std::string> fields;  // the file's own bytes, without quotes
  std::int64_t line = 0;            // where it starts
  bool surplus = false;             // text after a closing quote, which no field holds
};

// Rows of a separated table; quoted fields may hold separators, doubled quotes and line breaks; blank lines are no
// rows. Throws DataError on a quote that is never closed.
std::vector<TableRow> parse_table(std::string_view text, char separator, const std::string& name);

// Rows whose number of fields is not the header's, and rows with text after a closing quote, are skipped and named by
// file and line, as are pictures outside the table's folder. DataError: no such columns, no rows.
PrepareSpec table_data(const std::string& file, const std::string& picture_column = "filepath",
                       const std::string& caption_column = "title");

}  // namespace trireme

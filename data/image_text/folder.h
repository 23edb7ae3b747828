// The user's own pictures: a folder with a caption file beside each picture (x.jpg, x.txt), or a table in
// OpenCLIP's form (columns `filepath` and `title`, separated by tabs or commas, RFC 4180 quotes).
#pragma once
#include "data/image_text/prepared.h"

#include <string>

namespace trireme {

// The class of a picture is the folder it lies in, relative to `from`. Pictures must lie below the folder
// (below the table's folder): `..`, absolute paths elsewhere and links that lead out throw DataError with the
// row. Pictures without a caption are skipped and named.
PrepareSpec folder_data(const std::string& from);

// Rows of a separated table; quoted fields may hold separators, doubled quotes and line breaks. Throws
// DataError on an open quote. `lines` (may be null): the line each row starts on.
std::vector<std::vector<std::string>> parse_table(std::string_view text, char separator, const std::string& name,
                                                  std::vector<std::int64_t>* lines = nullptr);

}  // namespace trireme

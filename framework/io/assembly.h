// `rows` entries of a checkpoint of another world size, put together by row range. Row numbers are only what a file
// says: parts are put in their order, never at a place computed from one.
#pragma once
#include "framework/io/checkpoint.h"
#include "framework/io/manifest.h"

namespace trireme {

class Assembly {
 public:
  // Both throw DataError, beginning with `place`, where parts do not fit together or rows are missing or held twice.
  void add(const Manifest::Tensor& t, const SharedBytes& data, const std::string& place);
  void finish(Snapshot& to, const std::string& place);

 private:
  struct Rows {
    std::int64_t count;
    SharedBytes bytes;
  };
  struct Part {
    bool seen = false;
    Snapshot::Entry entry;
    std::map<std::int64_t, Rows> rows;  // by first row
  };
  std::map<std::string, Part> parts_;
};

}  // namespace trireme

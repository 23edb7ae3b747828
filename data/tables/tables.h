// Samples of dense values and ids: what click models train on. Each sparse column ("table") is a bag of ids of its own
// range; most hold one.
#pragma once
#include "data/dataset.h"

#include <string>
#include <vector>

namespace trireme {

struct Table {
  std::string name;
  std::int64_t rows = 0;        // ids are 0 to rows - 1, below 2^31
  std::int64_t width = 1;       // the longest bag
  std::string pooling = "sum";  // or mean: of the embeddings of a bag; an empty bag gives zeros
};

// Columns of a batch of b samples: "dense" f32 [b, dense()]; "ids" i32 [b, sum of the widths], the tables one after the
// other, -1 where a bag is shorter; "label" f32 [b], 0 or 1; where it is known, "truth" f32 [b]: the logit of the
// probability that the label was drawn with.
class TableData : public Dataset {
 public:
  struct Part {
    std::int64_t begin = 0, end = 0;
    std::int64_t size() const { return end - begin; }
  };
  virtual std::int64_t dense() const = 0;
  virtual const std::vector<Table>& tables() const = 0;
  virtual Part train() const = 0;
  virtual Part test() const = 0;
  virtual std::string identity() const = 0;  // tells it from other data, wherever it lies
  virtual bool has_truth() const { return false; }

  std::int64_t width() const {
    std::int64_t w = 0;
    for (const auto& t : tables()) w += t.width;
    return w;
  }
};

}  // namespace trireme

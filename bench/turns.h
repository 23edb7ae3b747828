// Rows of a benchmark whose arms take turns.
#pragma once
#include "comm/error.h"

#include <cstdio>
#include <vector>

namespace trireme::bench {

// Steps every row once a block, of which the first warms up; every other block backwards, so that none always follows
// the same neighbour (a GPU that is hot runs slower). Each time is told on stderr. A stop signal ends it: what was
// measured by then is the result.
// Row: step(bool count), title(), ms: what counted.
template <class Row>
void in_turns(std::vector<Row>& rows, int blocks) {
  try {
    for (int block = 0; block <= blocks; ++block) {
      for (std::size_t i = 0; i < rows.size(); ++i) {
        Row& row = rows[block % 2 ? rows.size() - 1 - i : i];
        const std::size_t before = row.ms.size();
        row.step(block > 0);
        if (row.ms.size() > before) std::fprintf(stderr, "  %s: %.2f ms\n", row.title().c_str(), row.ms.back());
      }
      std::fprintf(stderr, "block %d of %d\n", block, blocks);
    }
  } catch (const Error& e) {
    if (e.code() != ExitCode::killed) throw;
    std::fprintf(stderr, "stopped: what was measured by then follows\n");
  }
}

}  // namespace trireme::bench

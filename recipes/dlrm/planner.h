// Which rank holds which table.
#pragma once
#include "data/tables/tables.h"

#include <string>
#include <vector>

namespace trireme::dlrm {

struct Owners {
  std::vector<int> of_table;                      // rank of each table
  std::vector<std::vector<std::int64_t>> tables;  // of each rank, ascending; some ranks may have none
  std::vector<double> bytes;                      // of each rank's tables and their state
};

// Tables as whole pieces, the largest first, each to the rank that holds least. All tables cost the same in the
// exchange, so ranks get equally many, give or take one, as long as they fit into `limit` bytes a rank; else memory
// alone decides. The same on every rank. UsageError with the cure where that is not enough.
Owners plan_tables(const std::vector<Table>& tables, double bytes_per_row, int ranks, double limit,
                   const std::string& cure);

}  // namespace trireme::dlrm

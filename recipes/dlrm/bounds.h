// How much error the forward exchange may make: by table (classes) and by step (decay). After Feng et al., SC'24,
// arXiv 2407.04272, sections "table-wise" and "iteration-wise", by the artifact's error_bound_conf.py and stage_check.
#pragma once
#include "framework/config/config.h"

#include <cstdint>
#include <string>
#include <vector>

namespace trireme::dlrm {

struct BoundsConfig {
  std::string classes = "published";  // published, uniform, explicit, or a file of `trireme dlrm analyze`
  double tight = 0.01, base = 0.03, loose = 0.05;
  std::vector<std::int64_t> tight_tables, loose_tables;
  std::string decay = "step";
  double decay_factor = 2;
  std::int64_t decay_steps = 0;
  bool from_file() const { return classes != "published" && classes != "uniform" && classes != "explicit"; }
  void fields(Fields& f);
};

// What a bound is multiplied by at step t: from c down to 1 at step T, by the named function: step (ten equal steps),
// linear, log, constant (c until T) or none.
double decay_factor(const std::string& function, double c, std::int64_t t, std::int64_t T);

// What `trireme dlrm analyze` writes, a YAML file; one entry a table.
struct Analysis {
  std::vector<std::string> classes;  // tight, base or loose
  std::vector<std::string> codecs;   // what the speed model chose; empty: not known
  std::vector<double> unique_ratio, merged_share, rows;
  std::vector<double> ratio;  // of the chosen codec
  void fields(Fields& f);
  static Analysis load(const std::string& path, std::int64_t tables);  // UsageError
};

class Bounds {
 public:
  // `shape`: of public data, for the published classes. `place`: begins an error about classes.
  Bounds(const BoundsConfig& config, const std::string& shape, std::int64_t tables, const std::string& place);

  char class_of(std::int64_t table) const { return classes_[std::size_t(table)]; }  // T, B or L
  // steps: of the whole run, of which 0.21 are decay_steps where that is 0.
  double relative(std::int64_t table, std::int64_t step, std::int64_t steps) const;
  double factor(std::int64_t step, std::int64_t steps) const;

 private:
  BoundsConfig config_;
  std::string classes_;
};

}  // namespace trireme::dlrm

// Generated clicks that look like Criteo's to an embedding table and to a codec: ids by Zipf-Mandelbrot with the row
// counts of a public shape, dense values as logs of heavy-tailed counts, and a planted label, so that the best AUC that
// any model can reach is known. A sample is a function of (seed, its number): any rank makes any sample.
#pragma once
#include "data/tables/shapes.h"
#include "data/tables/tables.h"
#include "data/tables/zipf.h"

namespace trireme {

struct CriteoLikeSpec {
  std::string shape = "kaggle";
  double scale = 1;  // tables of more than 1,000 rows have about 1 / scale of them
  double q = 1.5;    // Mandelbrot's shift: lighter tails at the same share of the first id
  std::int64_t train = 1000000, test = 100000;
  double positive_rate = 0.25;
  std::uint64_t seed = 1;
};

class CriteoLike final : public TableData {
 public:
  explicit CriteoLike(const CriteoLikeSpec& spec);  // UsageError for an unknown shape

  std::int64_t size() const override { return spec_.train + spec_.test; }
  Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override;
  std::int64_t dense() const override { return shape_.dense; }
  const std::vector<Table>& tables() const override { return tables_; }
  Part train() const override { return {0, spec_.train}; }
  Part test() const override { return {spec_.train, size()}; }
  std::string identity() const override;
  bool has_truth() const override { return true; }
  const Zipf& ids_of(std::size_t table) const { return ids_[table]; }

  // The truth: logistic in a sum of effects of ids and dense values and of the products of their hidden vectors
  // (a factorisation machine of rank 3, Rendle, ICDM'10).
  double logit(const float* dense, const std::int32_t* ids) const { return bias_ + raw_logit(dense, ids); }

 private:
  struct Column {  // of dense values
    double zero, location, spread, weight, centre;
    double hidden[3];
  };
  void sample(std::int64_t id, float* dense, std::int32_t* ids, float* label, float* truth) const;
  double raw_logit(const float* dense, const std::int32_t* ids) const;
  void plant();

  CriteoLikeSpec spec_;
  const Shape& shape_;
  std::vector<Table> tables_;
  std::vector<Zipf> ids_;
  std::vector<Column> columns_;
  std::vector<double> effect_;  // of each table
  double bias_ = 0;
};

}  // namespace trireme

// The keys of the recipe.
#pragma once
#include "compression/codecs/bounded.h"
#include "data/tables/criteo_like.h"
#include "framework/kernels/embedding.h"
#include "recipes/dlrm/bounds.h"
#include "recipes/dlrm/model.h"

#include <memory>

namespace trireme::dlrm {

struct DataConfig {
  std::string file = "criteo_like";  // or a prepared file
  std::string shape = "kaggle";
  double scale = 1, shift = 1.5, positive_rate = 0.25;
  std::int64_t samples = 1000000, test_samples = 100000, seed = 1;
  bool generated() const { return file == "criteo_like"; }
  void fields(Fields& f);
};

struct ModelConfig {
  std::string shape = "data";
  std::int64_t dim = 0;
  std::vector<std::int64_t> bottom, top;
  void fields(Fields& f);
};

struct EmbeddingConfig {
  std::string optimizer = "sgd";
  double lr = 0;
  kernels::SparseRule rule() const;
  void fields(Fields& f);
};

struct PlannerConfig {
  double memory_gib = 0;
  void fields(Fields& f);
};

struct ForwardConfig {
  std::string codec = "raw", scope = "table";
  bool simulate = false;
  BoundsConfig bounds;
  void fields(Fields& f);
};

struct BackwardConfig {
  std::string codec = "raw", scope = "chunk";
  bool simulate = false, combine = false;
  double bound = 0.01;
  void fields(Fields& f);
};

struct CompressionConfig {
  ForwardConfig forward;
  BackwardConfig backward;
  bool strict = true, checksum = false, eval = false;
  std::string nonfinite = "raw", choose = "given", sizes = "exact";
  void fields(Fields& f);
};

struct DlrmConfig {
  DataConfig data;
  ModelConfig model;
  EmbeddingConfig embedding;
  PlannerConfig planner;
  CompressionConfig compression;
  std::int64_t eval_batch = 16384;
  void fields(Fields& f);
};

// That of another file: UsageError.
CompressionConfig compression_of(const std::string& file);
// Generated, or a prepared file. UsageError, DataError.
std::unique_ptr<TableData> open_data(const DataConfig& config);
// The model's shape for data of this many dense values and tables. UsageError naming the key.
Shape shape_of(const ModelConfig& model, const DataConfig& data, std::int64_t dense, std::int64_t tables);

}  // namespace trireme::dlrm

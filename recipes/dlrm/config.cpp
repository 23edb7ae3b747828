#include "recipes/dlrm/config.h"

#include "comm/error.h"
#include "data/tables/file.h"
#include "framework/train_config.h"

namespace trireme::dlrm {

void DataConfig::fields(Fields& f) {
  f("file", file, "criteo_like (generated), or a file of trireme data criteo, table, flights or criteo_like");
  f.choice("shape", shape, {"kaggle", "terabyte", "mlperf_v1", "mlperf_v2"},
           "criteo_like: whose tables; else for published classes");
  f("scale", scale, "criteo_like: tables above 1,000 rows have 1 / scale of them", {.min = 1, .max = 1e6});
  f("shift", shift, "criteo_like: Mandelbrot's q, lighter tails", {.min = 0, .max = 100});
  f("positive_rate", positive_rate, "criteo_like: share of ones", {.min = 0.001, .max = 0.999});
  f("samples", samples, "criteo_like: training samples", {.min = 1});
  f("test_samples", test_samples, "criteo_like: test samples", {.min = 1});
  f("seed", seed, "criteo_like: key of the data", {.min = 0});
}

void ModelConfig::fields(Fields& f) {
  f.choice("shape", shape, {"data", "kaggle", "terabyte", "mlperf_v1", "mlperf_v2"},
           "public sizes of embeddings and MLPs; data: those of data.shape");
  f("dim", dim, "width of an embedding; 0: the shape's", {.min = 0, .max = 65536});
  f("bottom", bottom, "hidden layers of the bottom MLP, which ends in dim; empty: the shape's");
  f("top", top, "hidden layers of the top MLP, which ends in 1; empty: the shape's");
}

kernels::SparseRule EmbeddingConfig::rule() const {
  return optimizer == "sgd"       ? kernels::SparseRule::sgd
         : optimizer == "adagrad" ? kernels::SparseRule::adagrad
                                  : kernels::SparseRule::rowwise_adagrad;
}

void EmbeddingConfig::fields(Fields& f) {
  f.choice("optimizer", optimizer, {"sgd", "adagrad", "rowwise_adagrad"}, "how rows of tables are updated");
  f("lr", lr, "learning rate of tables at its peak, on the schedule of optimizer.lr; 0: the same", {.min = 0});
}

void PlannerConfig::fields(Fields& f) {
  f("memory_gib", memory_gib,
    "most that a rank may hold of tables and their state; 0: its GPU's memory, or its machine's, shared with the ranks "
    "there; the least of all ranks",
    {.min = 0});
}

void ForwardConfig::fields(Fields& f) {
  f("codec", codec,
    "of looked-up rows on their way to the samples: raw, auto, smallest, packed, vector_lz, huffman, rans, "
    "dedup_packed, dedup_sparse, dedup_huffman, dedup_rans, fp16, bf16, fp8, int8_row32, int4; published: vector_lz or "
    "huffman as "
    "SC'24 chose for each table; analysis: as the file in classes says");
  f.choice("scope", scope, {"table", "chunk"},
           "whose range of values a bound is relative to: a table's whole batch, or what goes to one rank");
  f("simulate", simulate, "values as they would arrive, sent as they are: nothing is saved");
  bounds.fields(f);
}

void BackwardConfig::fields(Fields& f) {
  f("codec", codec, "of gradients of rows on their way back to the tables; as forward.codec");
  f.choice("scope", scope, {"chunk"}, "whose range of values the bound is relative to: what goes to one rank");
  f("simulate", simulate, "values as they would arrive, sent as they are: nothing is saved");
  f("bound", bound, "largest error, a share of the range", {.min = 0, .max = 1});
  f("combine", combine,
    "gradients of samples that share a row are summed before they are coded; not where they travel raw");
}

void CompressionConfig::fields(Fields& f) {
  f.group("forward", forward, "looked-up rows");
  f.group("backward", backward, "their gradients");
  f.choice("choose", choose, {"given", "link"},
           "given: code what has a codec; link: only where that is faster, by a measurement at the start that the run "
           "keeps");
  f.choice("sizes", sizes, {"exact", "capacity"},
           "exact: go ahead of the codes; capacity: before them, in a message as long as lately needed and an eighth "
           "more, and a step that needs more sends its codes again as with exact");
  f("strict", strict, "check every value after rounding: the bound holds to the last bit");
  f("checksum", checksum, "codes carry a CRC32C; refused on a GPU");
  f("eval", eval, "compress in evaluation as well");
  f.choice("nonfinite", nonfinite, {"raw", "error"},
           "rows with NaN or infinity: sent as they are, or an error (refused on a GPU)");
}

void DlrmConfig::fields(Fields& f) {
  f.group("data", data, "clicks");
  f.group("model", model, "two MLPs and embeddings of one width");
  f.group("embedding", embedding, "training of the tables; the MLPs follow optimizer");
  f.group("planner", planner, "which rank holds which table");
  f.group("compression", compression, "what the all-to-all of embeddings may lose");
  f("eval_batch", eval_batch, "samples of an evaluation batch, over all ranks", {.min = 1, .max = 1 << 24});
}

CompressionConfig compression_of(const std::string& file) {
  TrainConfig train;
  DlrmConfig config;
  Config::load(file).read([&](Fields& f) { train.fields(f), config.fields(f); });
  return config.compression;
}

std::unique_ptr<TableData> open_data(const DataConfig& c) {
  if (c.generated())
    return std::make_unique<CriteoLike>(
        CriteoLikeSpec{c.shape, c.scale, c.shift, c.samples, c.test_samples, c.positive_rate, std::uint64_t(c.seed)});
  return std::make_unique<TableFile>(c.file);
}

Shape shape_of(const ModelConfig& model, const DataConfig& data, std::int64_t dense, std::int64_t tables) {
  const auto& preset = *shape_named(model.shape == "data" ? data.shape : model.shape);
  Shape s{dense, model.dim ? model.dim : preset.dim, tables, model.bottom, model.top};
  if (s.bottom.empty()) s.bottom = preset.bottom;
  if (s.top.empty()) s.top = preset.top;
  for (const auto* list : {&s.bottom, &s.top})
    for (const std::int64_t w : *list)
      if (w < 1 || w > 1 << 20)
        throw UsageError(list == &s.bottom ? "model.bottom" : "model.top", "has a layer of width " + std::to_string(w),
                         "choose 1 to 1048576");
  return s;
}

}  // namespace trireme::dlrm

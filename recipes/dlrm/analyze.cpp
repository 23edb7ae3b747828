// `trireme dlrm analyze RUN`: how much error each table can bear and which codec suits it, from lookups of a trained
// model. After Feng et al., SC'24, arXiv 2407.04272 (artifact: build_dict.py, cr_log.py).
#include "comm/error.h"
#include "comm/local/self.h"
#include "data/file.h"
#include "data/rng.h"
#include "framework/command.h"
#include "framework/device_info.h"
#include "framework/experiment.h"
#include "framework/init_from.h"
#include "framework/placement.h"
#include "recipes/dlrm/codec_speed.h"
#include "recipes/dlrm/config.h"
#include "recipes/dlrm/whole_job.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <numeric>
#include <sstream>
#include <string_view>
#include <unordered_set>

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

struct Options {
  std::string what, run, out, tight = "0.98", link = "1.25", ranks, dump, coding, device = "auto";
  bool whole_job = false;
  int rows = 2048, batches = 4, loose_rows = 200;
};

double real(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const double v = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || !(v >= 0)) throw UsageError(option, "'" + text + "' is no number", "write 0.9");
  return v;
}

std::size_t distinct_rows(const void* data, std::size_t rows, std::size_t bytes) {
  std::unordered_set<std::string_view> seen;
  for (std::size_t r = 0; r < rows; ++r) seen.insert({static_cast<const char*>(data) + r * bytes, bytes});
  return seen.size();
}

// Distinct rows of codes at a bound relative to the range, as the codec rounds.
std::size_t distinct_codes(const at::Tensor& rows, double relative) {
  const double step = 2 * relative * (rows.max() - rows.min()).item<double>();
  if (step == 0) return distinct_rows(rows.const_data_ptr(), std::size_t(rows.size(0)), rows[0].nbytes());
  const at::Tensor codes = at::round(rows / step).to(at::kInt).contiguous();
  return distinct_rows(codes.const_data_ptr(), std::size_t(codes.size(0)), std::size_t(codes.size(1)) * 4);
}

// SC'24's model of how much sooner a table is across a link of `link` GB/s.
double speedup(const CodecSpeed& m, double link) { return 1 / (1 / m.ratio + link * (1 / m.encode + 1 / m.decode)); }

struct TableReport {
  std::string bound, codec;
  std::int64_t rows = 0;
  double unique[3] = {};  // at 0.005, 0.01, 0.02
  CodecSpeed chosen;
  std::map<std::string, double> ratios;  // of every codec
};

const std::vector<std::string> candidates{"auto",         "packed",       "vector_lz",     "huffman",   "rans",
                                          "dedup_packed", "dedup_sparse", "dedup_huffman", "dedup_rans"};

// The class of a table, by what is left of its rows after rounding.
void classify(TableReport& r, const std::vector<at::Tensor>& batches, const Options& o) {
  constexpr double at[] = {0.005, 0.01, 0.02};
  for (const auto& rows : batches) {
    const auto all = double(distinct_rows(rows.const_data_ptr(), std::size_t(rows.size(0)), rows[0].nbytes()));
    for (int k = 0; k < 3; ++k) r.unique[k] += double(distinct_codes(rows, at[k])) / all / double(batches.size());
  }
  r.bound = r.unique[1] < real("--tight", o.tight) ? "tight" : r.rows <= o.loose_rows ? "loose" : "base";
}

// `tables`: how many are coded in one call on a GPU, where a call takes some time whatever it codes.
TableReport look(const std::vector<at::Tensor>& batches, const Table& table, const Options& o,
                 const BoundsConfig& bounds, at::Device device, std::size_t tables) {
  TableReport r;
  r.rows = table.rows;
  classify(r, batches, o);
  const double eb = r.bound == "tight" ? bounds.tight : r.bound == "loose" ? bounds.loose : bounds.base;
  std::vector<at::Tensor> there;
  for (const auto& rows : batches) there.push_back(rows.to(device));
  const std::size_t count = device.is_cpu() ? batches.size() : std::max(tables, batches.size());
  double best = 1;
  r.codec = "raw", r.chosen = measure_codec("raw", there, eb, count);  // the link is faster
  for (const auto& codec : candidates) {
    const CodecSpeed m = measure_codec(codec, there, eb, count);
    const double s = speedup(m, real("--link", o.link));
    r.ratios[codec] = m.ratio;
    if (s > best) best = s, r.codec = codec, r.chosen = m;
  }
  r.ratios["smallest"] = measure_codec("smallest", batches, eb, batches.size()).ratio;  // it knows no GPU
  r.ratios["vector_lz or huffman"] = std::max(r.ratios["vector_lz"], r.ratios["huffman"]);
  return r;
}

// f32 bytes by coded ones of tables that are equally large.
double ratio_of_all(const std::vector<TableReport>& all, const auto& ratio) {
  double coded = 0;
  for (const auto& r : all) coded += 1 / ratio(r);
  return double(all.size()) / coded;
}

void print_choice(const std::vector<TableReport>& all, const Options& o, at::Device device) {
  std::printf("all tables, f32 bytes by coded bytes, headers counted, chunks of %d rows: as chosen %.2f", o.rows,
              ratio_of_all(all, [](const TableReport& r) { return r.chosen.ratio; }));
  for (const auto& [codec, ratio] : all.front().ratios)
    std::printf(", %s %.2f", codec.c_str(),
                ratio_of_all(all, [&name = codec](const TableReport& r) { return r.ratios.at(name); }));
  std::printf("\nGB/s are of f32 on %s\n", device.is_cpu() ? "one thread of the CPU" : "the GPU");
  std::vector<TableReport> raw;
  for (const auto& r : all)
    if (r.codec == "raw") raw.push_back(r);
  if (raw.empty()) return;
  std::string best;
  double most = 0;
  for (const auto& codec : candidates)
    if (const double x = ratio_of_all(raw, [&](const TableReport& r) { return r.ratios.at(codec); }); x > most)
      most = x, best = codec;
  std::printf(
      "%zu of %zu tables are raw: no coder on this %s is fast enough for a link of %s GB/s; smallest of them "
      "there: %s, ratio %.2f\n",
      raw.size(), all.size(), device.is_cpu() ? "CPU (a thread)" : "GPU", o.link.c_str(), best.c_str(), most);
}

std::string yaml_list(const std::string& key, const std::vector<TableReport>& all,
                      const std::function<std::string(const TableReport&)>& value) {
  std::string s = key + ": [";
  for (std::size_t t = 0; t < all.size(); ++t) s += (t ? ", " : "") + value(all[t]);
  return s + "]\n";
}

std::string digits(double v) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", v);
  return text;
}

std::string yaml_of(const std::vector<TableReport>& all, const Options& o, const std::string& where) {
  return "# Written by trireme dlrm analyze " + o.run + ": read by compression.forward.classes\n" +
         "# codecs: for a link of " + o.link + " GB/s, measured on " + where + "\n" +
         yaml_list("classes", all, [](const TableReport& r) { return r.bound; }) +
         yaml_list("codecs", all, [](const TableReport& r) { return r.codec; }) +
         yaml_list("rows", all, [](const TableReport& r) { return std::to_string(r.rows); }) +
         yaml_list("unique_ratio", all, [](const TableReport& r) { return digits(r.unique[1]); }) +
         yaml_list("merged_share", all, [](const TableReport& r) { return digits(1 - r.unique[1]); }) +
         yaml_list("ratio", all, [](const TableReport& r) { return digits(r.chosen.ratio); });
}

// Training samples, drawn at random.
Batch batch_of(const TableData& data, const Options& o, int k) {
  Rng rng(1, "dlrm/analyze", std::uint64_t(k));
  std::vector<std::int64_t> ids;
  for (int i = 0; i < o.rows; ++i)
    ids.push_back(data.train().begin + std::int64_t(rng.below(std::uint64_t(data.train().size()))));
  return data.read(ids, 0);
}

// What travels of the table whose ids begin at this column.
std::vector<at::Tensor> lookups(const std::vector<at::Tensor>& ids, std::int64_t column, const Table& table,
                                const at::Tensor& weight) {
  std::vector<at::Tensor> batches;
  for (const auto& batch : ids) batches.push_back(pooled_rows(table, weight, batch.narrow(1, column, table.width)));
  return batches;
}

std::vector<int> ranks_of(const Options& o) {
  std::vector<int> all;
  std::istringstream in(o.ranks);
  for (std::string word; std::getline(in, word, ',');) {
    const auto n = int(real("--ranks", word));
    if (n < 1 || n > o.rows || std::to_string(n) != word)
      throw UsageError("--ranks", "'" + word + "' is no number of ranks", "write --ranks 4,8,32, at most --rows");
    all.push_back(n);
  }
  return all;
}

// Ratios of the whole exchange on other numbers of ranks, with the bounds that the run ends with.
void print_whole_job(const Options& o, const DlrmConfig& config, const TableData& data,
                     const std::map<std::string, at::Tensor>& weights) {
  const auto tables = std::int64_t(data.tables().size());
  const Shape shape = shape_of(config.model, config.data, data.dense(), tables);
  const Bounds bounds(config.compression.forward.bounds, config.data.shape, tables, "compression.forward.classes");
  std::vector<double> forward;  // what is left when the decay has ended
  for (std::int64_t t = 0; t < tables; ++t) forward.push_back(bounds.relative(t, 1, 0) / bounds.factor(1, 0));
  const std::vector<double> backward(forward.size(), config.compression.backward.bound);
  std::vector<std::int64_t> widths;
  for (const auto& t : data.tables()) widths.push_back(t.width);
  std::vector<at::Tensor> rows, gradients, ids;
  for (int k = 0; k < o.batches; ++k) {
    const Batch batch = batch_of(data, o, k);
    std::vector<at::Tensor> looked;
    std::int64_t column = 0;
    for (std::int64_t t = 0; t < tables; ++t) {
      const Table& table = data.tables()[std::size_t(t)];
      looked.push_back(lookups({batch.columns.at("ids")}, column, table, weights.at(table_name(t)))[0]);
      column += table.width;
    }
    ids.push_back(batch.columns.at("ids"));
    const Looked l = look_up(shape, weights, at::stack(looked), batch.columns.at("dense"), batch.columns.at("label"));
    rows.push_back(l.rows), gradients.push_back(l.gradients);
  }
  std::printf(
      "\nthe whole exchange of batches of %d, f32 bytes by bytes sent, headers and sizes counted; gradients within "
      "%g\n",
      o.rows, config.compression.backward.bound);
  for (const std::string kind : {"forward", "backward", "backward, combined"})
    for (const int ranks : ranks_of(o)) {
      const bool back = kind != "forward";
      std::vector<at::Tensor> batches = back ? gradients : rows;
      for (std::size_t k = 0; kind == "backward, combined" && k < batches.size(); ++k)
        batches[k] = combined_for(gradients[k], ids[k], widths, ranks);
      std::printf("%s, %d ranks, %d rows a chunk:", kind.c_str(), ranks, o.rows / ranks);
      for (const auto& [codec, ratio] :
           whole_job(batches, back ? backward : forward, ranks,
                     (back ? config.compression.backward.scope : config.compression.forward.scope) == "table"))
        std::printf(" %s %.2f,", codec.c_str(), ratio);
      std::printf("\n");
    }
}

// Raw f32, as `trireme codec` reads it: table_T_batch_K.f32, rows x dim.
void dump(const Options& o, std::size_t table, const std::vector<at::Tensor>& batches) {
  std::error_code failed;
  std::filesystem::create_directories(o.dump, failed);
  if (failed) throw DataError(o.dump, "cannot be made: " + failed.message(), "choose another --dump");
  for (std::size_t k = 0; k < batches.size(); ++k) {
    const std::string name = o.dump + "/table_" + std::to_string(table) + "_batch_" + std::to_string(k) + ".f32";
    std::ofstream out(name, std::ios::binary);
    out.write(static_cast<const char*>(batches[k].const_data_ptr()), std::streamsize(batches[k].nbytes()));
    out.flush();
    if (!out) throw DataError(name, "cannot be written", "is the disk full?");
  }
}

void write_yaml(const std::string& out, const std::string& yaml, bool all_raw) {
  write_whole(out, [&](const std::string& name) {
    std::ofstream file(name);
    file << yaml << std::flush;
    if (!file) throw DataError(out, "cannot be written", "is the disk full?");
  });
  std::printf("wrote %s: train with compression.forward.classes=%s compression.forward.codec=%s\n", out.c_str(),
              out.c_str(), all_raw ? "auto (its own codecs are raw)" : "analysis");
}

std::vector<TableReport> table_by_table(const Options& o, const DlrmConfig& config, const TableData& data,
                                        const std::map<std::string, at::Tensor>& weights,
                                        const std::vector<at::Tensor>& ids, at::Device device) {
  std::vector<TableReport> all;
  std::printf("%-8s %11s %9s %9s %9s  %-6s %-14s %7s %7s %7s\n", "table", "rows", "Uq/U0 .005", ".01", ".02", "class",
              "codec", "ratio", "enc", "dec");
  std::int64_t column = 0;
  for (std::size_t t = 0; t < data.tables().size(); ++t) {
    const Table& table = data.tables()[t];
    const auto weight = weights.find(table_name(std::int64_t(t)));
    if (weight == weights.end()) throw DataError(o.run, "has no " + table_name(std::int64_t(t)), "name a run of dlrm");
    const auto batches = lookups(ids, column, table, weight->second);
    all.push_back(look(batches, table, o, config.compression.forward.bounds, device, data.tables().size()));
    if (!o.dump.empty()) dump(o, t, batches);
    const TableReport& r = all.back();
    column += table.width;
    std::printf("%-8s %11lld %9.3f %9.3f %9.3f  %-6s %-14s %7.1f %7.2f %7.2f\n", table.name.c_str(),
                static_cast<long long>(r.rows), r.unique[0], r.unique[1], r.unique[2], r.bound.c_str(), r.codec.c_str(),
                r.chosen.ratio, r.chosen.encode, r.chosen.decode);
  }
  return all;
}

int analyze(const Options& o) {
  if (o.what != "analyze") throw UsageError("trireme dlrm", "unknown word '" + o.what + "'", "known: analyze");
  const std::string config_file = o.run + "/config.resolved.yaml";
  if (!std::filesystem::exists(config_file)) throw UsageError(o.run, "is no run folder", "name a run of dlrm");
  const Config file = Config::load(config_file);
  if (file.string_at("recipe") != "dlrm") throw UsageError(o.run, "is no run of dlrm", "name one");
  DlrmConfig config;
  TrainConfig train;
  file.read([&](Fields& f) { train.fields(f), config.fields(f); });
  if (!o.coding.empty()) config.compression = compression_of(o.coding);
  const at::Device device = one_device(o.device);
  if (o.whole_job && o.ranks.empty())
    throw UsageError("--whole-job", "does not know the numbers of ranks", "add --ranks 4,8,32");
  const auto data = open_data(config.data);
  const auto self = make_self();
  const auto weights = weights_of(o.run, "RUN", *self);
  std::vector<at::Tensor> ids;
  for (int k = 0; k < o.batches; ++k) ids.push_back(batch_of(*data, o, k).columns.at("ids"));
  if (o.whole_job) {
    print_whole_job(o, config, *data, weights);
    std::int64_t column = 0;
    for (std::size_t t = 0; !o.dump.empty() && t < data->tables().size(); ++t) {
      const Table& table = data->tables()[t];
      dump(o, t, lookups(ids, column, table, weights.at(table_name(std::int64_t(t)))));
      column += table.width;
    }
    return 0;
  }
  const std::vector<TableReport> all = table_by_table(o, config, *data, weights, ids, device);
  print_choice(all, o, device);
  if (!o.ranks.empty()) print_whole_job(o, config, *data, weights);
  const std::string out = o.out.empty() ? o.run + "/analysis.yaml" : o.out;
  const bool all_raw = std::all_of(all.begin(), all.end(), [](const TableReport& r) { return r.codec == "raw"; });
  write_yaml(out, yaml_of(all, o, device.is_cpu() ? "a CPU, one thread" : device_name(device)), all_raw);
  return 0;
}

const Commands::Entry registered(
    {"dlrm", "analyze RUN: error bounds and codec of each table, from a trained model", [](CommandOptions& command) {
       const auto o = std::make_shared<Options>();
       command.text("what", o->what, "analyze", command.required);
       command.text("run", o->run, "run folder of dlrm", command.required);
       command.text("--out", o->out, "YAML to write; default: RUN/analysis.yaml");
       command.number("--rows", o->rows, "samples of a batch that is looked up", {2, 1 << 20});
       command.number("--batches", o->batches, "batches looked up", {1, 1000});
       command.text("--tight", o->tight, "tables with fewer distinct rows of codes than this share are tight");
       command.text("--ranks", o->ranks, "4,8,32: also what the whole exchange would send both ways on so many ranks");
       command.flag("--whole-job", o->whole_job, "that alone, without the tables one by one");
       command.text("--coding", o->coding, "configuration whose compression counts in place of the run's");
       command.text("--dump", o->dump, "folder for the rows that were looked up, for trireme codec");
       command.number("--loose-rows", o->loose_rows, "tables of at most so many rows are loose", {0, 1 << 30});
       command.text(
           "--link", o->link,
           "GB/s that a rank gets of the link between hosts, for the choice of the codec: 1.25 is 10 Gbit/s for "
           "one rank a host; raw is chosen where coding takes longer than it spares");
       command.text("--device", o->device,
                    "where codecs are timed: auto, cpu (one thread) or cuda; take the training's");
       return [o](const CommandLine&) { return analyze(*o); };
     }});

}  // namespace
}  // namespace trireme::dlrm

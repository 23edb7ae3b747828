#include "data/tables/file.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "data/json.h"
#include "data/workers.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <numeric>
#include <set>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr const char* prepare_anew = "prepare it anew: trireme data";

nlohmann::json json_of(const TableFileInfo& info) {
  nlohmann::json tables = nlohmann::json::array();
  for (const auto& t : info.tables)
    tables.push_back({{"name", t.name}, {"rows", t.rows}, {"width", t.width}, {"pooling", t.pooling}});
  const auto part = [](const TableData::Part& p) { return nlohmann::json::array({p.begin, p.end}); };
  return {{"format", 1},
          {"name", info.name},
          {"dense", info.dense},
          {"tables", tables},
          {"samples", info.samples},
          {"train", part(info.train)},
          {"test", part(info.test)},
          {"validation", part(info.validation)},
          {"identity", info.identity},
          {"source", info.source}};
}

TableData::Part part_of(const nlohmann::json& j, std::int64_t samples) {
  const TableData::Part p{j.at(0).get<std::int64_t>(), j.at(1).get<std::int64_t>()};
  if (p.begin < 0 || p.end < p.begin || p.end > samples) throw std::out_of_range("a part of the samples");
  return p;
}

TableFileInfo info_of(const std::string& text, const std::string& path) {
  try {
    const nlohmann::json j = parse_json(text);
    TableFileInfo info;
    if (j.at("format").get<int>() != 1) throw std::out_of_range("format");
    info.name = j.at("name");
    info.dense = j.at("dense").get<std::vector<std::string>>();
    info.samples = j.at("samples");
    for (const auto& t : j.at("tables")) {
      info.tables.push_back({t.at("name"), t.at("rows"), t.at("width"), t.at("pooling")});
      const Table& last = info.tables.back();
      if (last.rows < 1 || last.rows >= std::int64_t(1) << 31 || last.width < 1 || last.width > 1 << 20 ||
          (last.pooling != "sum" && last.pooling != "mean"))
        throw std::out_of_range("table " + last.name);
    }
    if (info.samples < 0 || info.tables.empty()) throw std::out_of_range("samples");
    info.train = part_of(j.at("train"), info.samples);
    info.test = part_of(j.at("test"), info.samples);
    info.validation = part_of(j.at("validation"), info.samples);
    info.identity = j.at("identity");
    info.source = j.value("source", "");
    return info;
  } catch (const std::exception& e) {
    throw DataError(path, std::string("its description is damaged: ") + e.what(), prepare_anew);
  }
}

}  // namespace

TableFileWriter::TableFileWriter(const std::string& path, std::int64_t most, std::int64_t dense, std::int64_t width,
                                 bool truth)
    : file_(Hdf5File::create(path)), dense_(dense), width_(width), truth_(truth) {
  const std::int64_t n = std::max<std::int64_t>(most, 1);
  const std::int64_t of_dense[] = {n, std::max<std::int64_t>(dense, 1)}, of_ids[] = {n, width}, one[] = {n};
  file_.create_plain_array("dense", DType::f32, of_dense);
  file_.create_plain_array("ids", DType::i32, of_ids);
  file_.create_plain_array("label", DType::u8, one);
  if (truth) file_.create_plain_array("truth", DType::f32, one);
}

void TableFileWriter::add(std::int64_t n, const float* dense, const std::int32_t* ids, const std::uint8_t* label,
                          const float* truth) {
  if (n == 0) return;
  if (dense_ > 0) file_.write_rows("dense", samples_, n, dense);
  file_.write_rows("ids", samples_, n, ids);
  file_.write_rows("label", samples_, n, label);
  if (truth_) file_.write_rows("truth", samples_, n, truth);
  crc_[0] = crc32c(dense, std::size_t(n * dense_) * 4, crc_[0]);
  crc_[1] = crc32c(ids, std::size_t(n * width_) * 4, crc_[1]);
  crc_[2] = crc32c(label, std::size_t(n), crc_[2]);
  samples_ += n;
}

void TableFileWriter::values(const std::string& table, const std::vector<std::int64_t>& values) {
  const std::int64_t shape[] = {std::int64_t(values.size())};
  if (values.empty()) return;
  file_.create_array("values/" + table, DType::i64, shape);
  file_.write_rows("values/" + table, 0, shape[0], values.data());
}

void TableFileWriter::values(const std::string& table, const std::vector<std::string>& values) {
  std::string lines;
  for (const auto& v : values) lines += v + "\n";
  const std::int64_t shape[] = {std::int64_t(lines.size())};
  if (lines.empty()) return;
  file_.create_array("values/" + table, DType::u8, shape);
  file_.write_rows("values/" + table, 0, shape[0], lines.data());
}

void TableFileWriter::counts(const std::string& table, const std::vector<std::int64_t>& counts) {
  const std::int64_t shape[] = {std::int64_t(counts.size())};
  if (counts.empty()) return;
  file_.create_array("counts/" + table, DType::i64, shape);
  file_.write_rows("counts/" + table, 0, shape[0], counts.data());
}

void TableFileWriter::finish(TableFileInfo info) {
  info.samples = samples_;
  char identity[64];
  std::snprintf(identity, sizeof identity, "%lld samples %08x%08x%08x", static_cast<long long>(samples_), crc_[0],
                crc_[1], crc_[2]);
  info.identity = info.name + " " + identity;
  file_.write_text("tables", json_of(info).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  file_.close();
}

TableFile::TableFile(const std::string& path) : path_(path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) throw DataError(path, "no such file", "check data.file");
  const Hdf5File file = Hdf5File::open(path);
  if (!file.has("tables")) throw DataError(path, "is no file of samples with tables", prepare_anew);
  info_ = info_of(file.read_text("tables"), path);
  map(file);
}

void TableFile::map(const Hdf5File& file) {
  mapped_.emplace(path_);
  const auto at = [&](const char* name, DType dtype, std::int64_t columns) {
    const auto a = file.has(name) ? file.array(name) : Hdf5File::Array{};
    const std::int64_t wide = a.shape.size() == 2 ? a.shape[1] : 1;
    const std::byte* rows = nullptr;
    if (!a.shape.empty() && a.dtype == dtype && a.shape[0] >= info_.samples && wide == columns)
      rows = mapped_->rows(std::uint64_t(file.offset(name)), std::uint64_t(info_.samples),
                           std::uint64_t(columns) * size_of(dtype));
    if (!rows) throw DataError(path_, std::string("its array ") + name + " is cut short or missing", prepare_anew);
    return rows;
  };
  dense_ = reinterpret_cast<const float*>(at("dense", DType::f32, std::max<std::int64_t>(dense(), 1)));
  ids_ = reinterpret_cast<const std::int32_t*>(at("ids", DType::i32, width()));
  label_ = reinterpret_cast<const std::uint8_t*>(at("label", DType::u8, 1));
  if (file.has("truth")) truth_ = reinterpret_cast<const float*>(at("truth", DType::f32, 1));
}

Batch TableFile::read(std::span<const std::int64_t> ids, std::int64_t) const {
  const auto b = std::int64_t(ids.size());
  const std::int64_t d = dense(), w = width();
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  const at::Tensor x = at::empty({b, d}, at::kFloat), sparse = at::empty({b, w}, at::kInt);
  const at::Tensor label = at::empty({b}, at::kFloat);
  const at::Tensor truth = truth_ ? at::empty({b}, at::kFloat) : at::Tensor();
  for (std::int64_t i = 0; i < b; ++i) {
    const std::int64_t id = ids[std::size_t(i)];
    if (id < 0 || id >= info_.samples)
      throw DataError(path_, "has no sample " + std::to_string(id) + " among " + std::to_string(info_.samples));
    std::memcpy(x.mutable_data_ptr<float>() + i * d, dense_ + id * d, std::size_t(d) * 4);
    std::memcpy(sparse.mutable_data_ptr<std::int32_t>() + i * w, ids_ + id * w, std::size_t(w) * 4);
    label.mutable_data_ptr<float>()[i] = label_[id] ? 1.0f : 0.0f;
    if (truth_) truth.mutable_data_ptr<float>()[i] = truth_[id];
  }
  batch.columns = {{"dense", x}, {"ids", sparse}, {"label", label}};
  if (truth_) batch.columns["truth"] = truth;
  return batch;
}

void write_table_file(const TableData& data, const std::string& name, const std::string& path,
                      const std::string& source, int threads) {
  constexpr std::int64_t block = 16384;
  TableFileWriter writer(path, data.size(), data.dense(), data.width(), data.has_truth());
  Workers workers(threads);
  std::vector<Batch> blocks(static_cast<std::size_t>(threads));
  for (std::int64_t first = 0; first < data.size(); first += block * threads) {
    const auto begin_of = [&](std::int64_t k) { return std::min(first + k * block, data.size()); };
    workers.each(threads, [&](std::int64_t k) {
      std::vector<std::int64_t> ids(std::size_t(begin_of(k + 1) - begin_of(k)));
      std::iota(ids.begin(), ids.end(), begin_of(k));
      blocks[std::size_t(k)] = ids.empty() ? Batch{} : data.read(ids, 0);
    });
    for (const Batch& batch : blocks) {
      if (batch.ids.empty()) continue;
      const at::Tensor label = batch.columns.at("label").to(at::kByte);
      writer.add(std::ssize(batch.ids), batch.columns.at("dense").const_data_ptr<float>(),
                 batch.columns.at("ids").const_data_ptr<std::int32_t>(), label.const_data_ptr<std::uint8_t>(),
                 data.has_truth() ? batch.columns.at("truth").const_data_ptr<float>() : nullptr);
    }
  }
  TableFileInfo info{name, {}, data.tables(), 0, data.train(), data.test(), {}, {}, source};
  for (std::int64_t j = 0; j < data.dense(); ++j) info.dense.push_back(std::string("I").append(std::to_string(j + 1)));
  writer.finish(std::move(info));
}

}  // namespace trireme

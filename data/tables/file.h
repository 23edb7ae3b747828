// Prepared samples as one HDF5 file, mapped by its readers: dense f32 [n, D], ids i32 [n, W], label u8 [n]; truth f32
// [n] of generated ones; counts/NAME i64 [rows], how often each id occurs; values/NAME, what each id stood for. The
// text "tables" (JSON) says the rest.
#pragma once
#include "data/hdf5.h"
#include "data/mapped_file.h"
#include "data/tables/tables.h"

#include <array>
#include <cstddef>
#include <optional>

namespace trireme {

struct TableFileInfo {
  std::string name;                // criteo, flights, ...
  std::vector<std::string> dense;  // names of the dense columns
  std::vector<Table> tables;
  std::int64_t samples = 0;
  TableData::Part train, test, validation;
  std::string identity;  // filled in by the writer
  std::string source;    // what it was made from and how, as the caller says it: another source is another file
};

// Writes blocks of samples in their order. What it writes is there once finish() has returned.
class TableFileWriter {
 public:
  // most: room for this many samples. Rows of tables and the parts may still be unknown.
  TableFileWriter(const std::string& path, std::int64_t most, std::int64_t dense, std::int64_t width, bool truth);
  void add(std::int64_t n, const float* dense, const std::int32_t* ids, const std::uint8_t* label,
           const float* truth = nullptr);
  std::int64_t samples() const { return samples_; }
  // What each id of a table stood for; strings one a line.
  void values(const std::string& table, const std::vector<std::int64_t>& values);
  void values(const std::string& table, const std::vector<std::string>& values);
  void counts(const std::string& table, const std::vector<std::int64_t>& counts);
  void finish(TableFileInfo info);

 private:
  Hdf5File file_;
  std::int64_t samples_ = 0, dense_, width_;
  bool truth_;
  std::array<std::uint32_t, 3> crc_{};  // of dense, ids and labels: tells content apart
};

class TableFile final : public TableData {
 public:
  explicit TableFile(const std::string& path);  // DataError

  std::int64_t size() const override { return info_.samples; }
  Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override;
  std::int64_t dense() const override { return std::int64_t(info_.dense.size()); }
  const std::vector<Table>& tables() const override { return info_.tables; }
  Part train() const override { return info_.train; }
  Part test() const override { return info_.test; }
  std::string identity() const override { return info_.identity; }
  bool has_truth() const override { return truth_ != nullptr; }
  const TableFileInfo& info() const { return info_; }

 private:
  void map(const Hdf5File& file);
  const std::string path_;
  TableFileInfo info_;
  std::optional<MappedFile> mapped_;
  const float *dense_ = nullptr, *truth_ = nullptr;
  const std::int32_t* ids_ = nullptr;
  const std::uint8_t* label_ = nullptr;
};

// Any data as such a file, in its own order; so many threads read it.
void write_table_file(const TableData& data, const std::string& name, const std::string& path,
                      const std::string& source = {}, int threads = 1);

}  // namespace trireme

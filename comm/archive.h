// Named state, written and read by the same function: `state(Archive&)` visits every value that changes the
// next training step, in the same order on every rank.
#pragma once
#include "comm/buffer.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// How ranks hold an array. Resume on another world size keeps `replicated` and `rows`; `per_rank` is not there then:
// state that asks with has() starts afresh, any other is refused.
struct Sharing {
  enum Kind : std::uint8_t { replicated, rows, per_rank } kind = replicated;
  std::int64_t first_row = 0;   // rows: this rank holds [first_row, first_row + shape[0]) of ...
  std::int64_t total_rows = 0;  // ... total_rows along dimension 0
  // rows and per_rank: the ranks that hold this same array, ascending, when it is not this one alone. The first saves
  // it for all.
  std::vector<int> holders = {};
};

class Archive {
 public:
  virtual ~Archive() = default;
  virtual bool loading() const = 0;

  // Row-major host memory of product(shape) elements, written from or read into `data`. On load a missing
  // name or another shape or dtype throws DataError naming it.
  virtual void array(std::string_view name, DType dtype, std::span<const std::int64_t> shape, void* data,
                     Sharing sharing = {}) = 0;
  // A string of any length (JSON and lists travel as text). Replicated unless `per_rank`.
  virtual void text(std::string_view name, std::string& value, bool per_rank = false) = 0;
  // Is the name there? Always true when saving. For `per_rank` state after a change of world size.
  virtual bool has(std::string_view name) const = 0;

  void value(std::string_view name, std::int64_t& v) { array(name, DType::i64, {}, &v); }
  void value(std::string_view name, double& v) { array(name, DType::f64, {}, &v); }

  // Prefix for names: { Archive::Group g(ar, "optimizer"); ... } gives "optimizer/...".
  class Group {
   public:
    Group(Archive& ar, std::string_view name) : ar_(ar), size_(ar.prefix_.size()) {
      ar_.prefix_.append(name).append("/");
    }
    ~Group() { ar_.prefix_.resize(size_); }
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

   private:
    Archive& ar_;
    std::size_t size_;
  };

 protected:
  std::string full(std::string_view name) const { return prefix_ + std::string(name); }

 private:
  std::string prefix_;
};

}  // namespace trireme

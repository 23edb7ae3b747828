#include "framework/formats/safetensors_header.h"

#include "comm/error.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's numbers are little-endian");

using Header = SafetensorsHeader;
constexpr std::size_t max_depth = 4;

// Every dtype of the format, also those that no tensor of ours can hold: their files are valid all the same.
unsigned bits_of(std::string_view dtype) {
  static const std::map<std::string_view, unsigned> bits = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
      {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64}};
  const auto it = bits.find(dtype);
  return it == bits.end() ? 0 : it->second;
}

// SAX events to a Header. A tree of untrusted JSON would keep the last of two equal keys and turn big
// integers into doubles; here each value is checked where it stands.
class Reader {
 public:
  explicit Reader(Header& to) : header_(to) {}
  const std::string& refusal() const { return refusal_; }

  bool null() { return other_value(); }
  bool boolean(bool) { return other_value(); }
  bool number_integer(std::int64_t) { return other_value(); }  // negative
  bool number_float(double, const std::string&) { return other_value(); }
  bool binary(std::vector<std::uint8_t>&) { return other_value(); }
  bool number_unsigned(std::uint64_t v) {
    if (in(At::shape)) return tensor_->shape.push_back(v), true;
    if (in(At::offsets)) return offsets_.push_back(v), true;
    return other_value();
  }
  bool string(std::string& v) {
    if (in(At::metadata)) return header_.metadata[key_] = std::move(v), true;
    if (in(At::tensor) && key_ == "dtype") {
      if (!bits_of(v)) return refuse(tensor_place() + "unknown dtype " + safetensors_quoted(v));
      return tensor_->dtype = std::move(v), true;
    }
    return other_value();
  }

  bool start_object(std::size_t) {
    if (at_.empty()) return enter(At::file, true);
    if (in(At::file) && key_ == "__metadata__") return enter(At::metadata, true);
    if (in(At::file)) {
      name_ = key_;
      tensor_ = &header_.tensors[key_];
      return enter(At::tensor, true);
    }
    return other_value() && enter(At::unknown, true);
  }
  bool key(std::string& k) {
    if (!keys_.back().insert(k).second) return refuse("the key " + safetensors_quoted(k) + " is there twice");
    key_ = std::move(k);
    return true;
  }
  bool end_object() {
    if (in(At::tensor))
      for (const char* field : {"dtype", "shape", "data_offsets"})
        if (!keys_.back().contains(field)) return refuse(tensor_place() + "has no " + field);
    keys_.pop_back();
    at_.pop_back();
    return true;
  }
  bool start_array(std::size_t) {
    if (in(At::tensor) && key_ == "shape") return enter(At::shape, false);
    if (in(At::tensor) && key_ == "data_offsets") {
      offsets_.clear();
      return enter(At::offsets, false);
    }
    return other_value() && enter(At::unknown, false);
  }
  bool end_array() {
    if (in(At::offsets)) {
      if (offsets_.size() != 2) return refuse(tensor_place() + "data_offsets are not two numbers");
      tensor_->begin = offsets_[0];
      tensor_->end = offsets_[1];
    }
    at_.pop_back();
    return true;
  }
  bool parse_error(std::size_t byte, const std::string&, const nlohmann::json::exception& e) {
    std::string_view what = e.what();
    what.remove_prefix(std::min(what.size(), what.find("] ") + 2));
    // The message quotes the text that it stopped at: as long as the file wants.
    return refuse("not JSON at byte " + std::to_string(byte) + ": " + safetensors_quoted(what));
  }

 private:
  enum class At { file, metadata, tensor, shape, offsets, unknown };

  bool in(At place) const { return !at_.empty() && at_.back() == place; }
  bool refuse(std::string why) {
    refusal_ = std::move(why);
    return false;
  }
  std::string tensor_place() const { return "tensor " + safetensors_quoted(name_) + ": "; }
  bool enter(At place, bool object) {
    if (at_.size() == max_depth) return refuse("nested deeper than " + std::to_string(max_depth) + " levels");
    at_.push_back(place);
    if (object) keys_.emplace_back();
    return true;
  }
  // A value that fills no field of the format: fine only under a name that the format does not know.
  bool other_value() {
    if (in(At::unknown)) return true;
    if (in(At::metadata)) return refuse("__metadata__ holds something other than a text");
    if (in(At::shape) || in(At::offsets))
      return refuse(tensor_place() + key_ + " holds something other than a whole number from 0 to 2^64-1");
    if (in(At::tensor)) {
      if (key_ == "dtype") return refuse(tensor_place() + "dtype is not a text");
      if (key_ == "shape" || key_ == "data_offsets") return refuse(tensor_place() + key_ + " is not a list");
      return true;
    }
    return refuse("the entry " + safetensors_quoted(key_) + " is not an object");
  }

  Header& header_;
  std::vector<At> at_;
  std::vector<std::set<std::string>> keys_;  // of the open objects
  std::string key_, name_, refusal_;
  Header::Tensor* tensor_ = nullptr;
  std::vector<std::uint64_t> offsets_;
};

// Bytes of a tensor, or why there is no such number.
std::uint64_t bytes_of(const Header::Tensor& t, std::string_view path, const std::string& place) {
  std::uint64_t bits = 1;
  bool overflow = false;
  for (const std::uint64_t n : t.shape) overflow |= __builtin_mul_overflow(bits, n, &bits);
  overflow |= __builtin_mul_overflow(bits, bits_of(t.dtype), &bits);
  if (overflow) throw DataError(path, place + "its shape overflows 64 bits");
  if (bits % 8) throw DataError(path, place + "does not fill whole bytes");
  return bits / 8;
}

// Back to back from 0 to `data_bytes`, each as long as its shape says; then moves the offsets behind the
// header.
void check_layout(Header& header, std::string_view path, std::uint64_t data_start, std::uint64_t data_bytes) {
  std::vector<std::pair<const std::string*, Header::Tensor*>> order;
  order.reserve(header.tensors.size());
  for (auto& [name, tensor] : header.tensors) order.emplace_back(&name, &tensor);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->end) < std::pair(b.second->begin, b.second->end);
  });
  std::uint64_t at = 0;
  for (const auto& [name, t] : order) {
    const std::string place = "tensor " + safetensors_quoted(*name) + ": ";
    const std::string offsets = "[" + std::to_string(t->begin) + ", " + std::to_string(t->end) + "]";
    if (t->end < t->begin) throw DataError(path, place + "data_offsets " + offsets + " run backwards");
    if (t->begin != at)
      throw DataError(path, place + "data_offsets " + offsets + " leave a hole or overlap: the bytes before end at " +
                                std::to_string(at));
    const std::uint64_t bytes = bytes_of(*t, path, place);
    if (t->end - t->begin != bytes)
      throw DataError(path, place + "data_offsets " + offsets + " do not span the " + std::to_string(bytes) +
                                " bytes of its dtype and shape");
    at = t->end;
  }
  if (at != data_bytes)
    throw DataError(
        path,
        "the file holds " + std::to_string(data_bytes) + " bytes of data, its header describes " + std::to_string(at),
        at > data_bytes ? "the file is cut short: copy it again" : "");
  // Ends at most data_bytes, so nothing overflows.
  for (const auto& [name, t] : order) t->begin += data_start, t->end += data_start;
}

}  // namespace

std::string safetensors_quoted(std::string_view text) {
  constexpr std::size_t longest = 100;
  std::string s(text.substr(0, longest));
  s = nlohmann::json(s).dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return text.size() > longest ? s + "..." : s;
}

SafetensorsHeader parse_safetensors_header(std::string_view path, std::span<const std::byte> file) {
  const auto refuse = [&](const std::string& why) { throw DataError(path, "not a valid safetensors file: " + why); };
  std::uint64_t length = 0;
  if (file.size() < sizeof length) refuse("shorter than the 8 bytes of the header's length");
  std::memcpy(&length, file.data(), sizeof length);
  if (length > safetensors_max_header)
    refuse("a header of " + std::to_string(length) + " bytes; at most " + std::to_string(safetensors_max_header));
  const std::uint64_t rest = file.size() - sizeof length;
  if (length > rest)
    refuse("a header of " + std::to_string(length) + " bytes in a file of " + std::to_string(file.size()));
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof length, length);
  if (!text.starts_with('{')) refuse("the header does not begin with '{'");
  // The parser takes a zero byte for the end of the text.
  if (text.find('\0') != text.npos) refuse("a zero byte in the header");

  Header header;
  Reader reader(header);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &reader)) refuse(reader.refusal());
  check_layout(header, path, sizeof length + length, rest - length);
  return header;
}

}  // namespace trireme

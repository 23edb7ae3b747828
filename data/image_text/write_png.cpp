// PNG, third edition (W3C 2023), which has APNG's chunks acTL, fcTL and fdAT.
#include "data/image_text/write_png.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#ifdef TRIREME_HAS_ZLIB
#include <zlib.h>
#endif

namespace trireme {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr std::array<std::uint8_t, 8> signature = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};

std::uint32_t crc(std::span<const std::uint8_t> bytes) {
  static const auto table = [] {
    std::array<std::uint32_t, 256> t{};
    for (std::uint32_t n = 0; n < 256; ++n) {
      t[n] = n;
      for (int k = 0; k < 8; ++k) t[n] = (t[n] & 1 ? 0xedb88320u : 0) ^ (t[n] >> 1);
    }
    return t;
  }();
  std::uint32_t c = ~0u;
  for (const auto b : bytes) c = table[(c ^ b) & 255] ^ (c >> 8);
  return ~c;
}

void put(Bytes& to, std::uint64_t value, int bytes) {
  for (int i = bytes - 1; i >= 0; --i) to.push_back(std::uint8_t(value >> (8 * i)));
}

void chunk(Bytes& file, const char* type, const Bytes& data) {
  put(file, data.size(), 4);
  const std::size_t begin = file.size();
  file.insert(file.end(), type, type + 4);
  file.insert(file.end(), data.begin(), data.end());
  put(file, crc(std::span(file).subspan(begin)), 4);
}

Bytes deflated(const Bytes& raw) {
#ifdef TRIREME_HAS_ZLIB
  uLongf size = compressBound(uLong(raw.size()));
  Bytes out(size);
  if (compress2(out.data(), &size, raw.data(), uLong(raw.size()), 6) != Z_OK)
    throw Error(ExitCode::bug, "write_png", "zlib refused to deflate");
  out.resize(size);
  return out;
#else
  Bytes out = {0x78, 0x01};
  std::uint32_t a = 1, b = 0;
  for (const auto v : raw) a = (a + v) % 65521, b = (b + a) % 65521;
  for (std::size_t at = 0; at < raw.size();) {
    const std::size_t n = std::min<std::size_t>(raw.size() - at, 65535);
    out.push_back(at + n == raw.size());
    for (const std::size_t v : {n, ~n}) out.push_back(std::uint8_t(v)), out.push_back(std::uint8_t(v >> 8));
    out.insert(out.end(), raw.begin() + std::ptrdiff_t(at), raw.begin() + std::ptrdiff_t(at + n));
    at += n;
  }
  put(out, b << 16 | a, 4);
  return out;
#endif
}

// Rows as differences to the row above: smaller than raw pixels for most pictures.
Bytes filtered(const Image& image) {
  const std::size_t row = std::size_t(image.width) * 3;
  Bytes out;
  out.reserve((row + 1) * std::size_t(image.height));
  for (std::size_t y = 0; y < std::size_t(image.height); ++y) {
    out.push_back(2);  // filter "up"
    for (std::size_t i = y * row; i < (y + 1) * row; ++i)
      out.push_back(std::uint8_t(image.rgb[i] - (y ? image.rgb[i - row] : 0)));
  }
  return out;
}

Bytes frame_control(const Image& image, std::uint32_t number, double fps) {
  Bytes data;
  put(data, number, 4);
  put(data, std::uint64_t(image.width), 4);
  put(data, std::uint64_t(image.height), 4);
  put(data, 0, 8);  // at the upper left
  put(data, std::uint64_t(std::clamp(std::lround(1000 / fps), 1l, 65535l)), 2);
  put(data, 1000, 2);  // milliseconds
  put(data, 0, 2);     // replaced by the next
  return data;
}

// f(type, data) of each but the last. DataError: not whole.
template <class F>
void each_chunk(std::span<const std::uint8_t> bytes, const std::string& path, const F& f) {
  const auto broken = [&] { return DataError(path, "is no whole PNG file", "write it again"); };
  if (bytes.size() < 8 || !std::equal(signature.begin(), signature.end(), bytes.begin())) throw broken();
  for (std::size_t at = 8;;) {
    if (bytes.size() - at < 12) throw broken();
    std::size_t size = 0;
    for (int i = 0; i < 4; ++i) size = size << 8 | bytes[at + std::size_t(i)];
    if (size > bytes.size() - at - 12) throw broken();
    const std::string_view type(reinterpret_cast<const char*>(&bytes[at + 4]), 4);
    if (type == "IEND") return;
    f(type, std::string_view(reinterpret_cast<const char*>(bytes.data()) + at + 8, size));
    at += size + 12;
  }
}

}  // namespace

std::vector<std::uint8_t> encode_png(std::span<const Image> frames, const PngTexts& texts, double fps) {
  const Image& first = frames[0];
  Bytes file(signature.begin(), signature.end()), data;
  put(data, std::uint64_t(first.width), 4);
  put(data, std::uint64_t(first.height), 4);
  data.insert(data.end(), {8, 2, 0, 0, 0});  // 8 bits a channel, RGB
  chunk(file, "IHDR", data);
  for (const auto& [key, text] : texts) {
    data.assign(key.begin(), key.end());
    data.insert(data.end(), 5, 0);  // ends the key; not compressed; no language, no other key
    data.insert(data.end(), text.begin(), text.end());
    chunk(file, "iTXt", data);
  }
  if (frames.size() > 1) {
    data.clear();
    put(data, frames.size(), 4);
    put(data, 0, 4);  // for ever
    chunk(file, "acTL", data);
  }
  std::uint32_t number = 0;
  for (const auto& frame : frames) {
    if (frames.size() > 1) chunk(file, "fcTL", frame_control(frame, number++, fps));
    Bytes pixels = deflated(filtered(frame));
    if (&frame == &first) {
      chunk(file, "IDAT", pixels);
      continue;
    }
    data.clear();
    put(data, number++, 4);
    data.insert(data.end(), pixels.begin(), pixels.end());
    chunk(file, "fdAT", data);
  }
  chunk(file, "IEND", {});
  return file;
}

PngTexts png_texts(std::span<const std::uint8_t> bytes, const std::string& path) {
  PngTexts texts;
  each_chunk(bytes, path, [&](std::string_view type, std::string_view data) {
    if (const auto end = data.find('\0');
        type == "iTXt" && end != data.npos && data.substr(end, 5) == std::string(5, 0))
      texts.emplace_back(data.substr(0, end), data.substr(end + 5));
  });
  return texts;
}

PngFrames::PngFrames(std::span<const std::uint8_t> bytes, std::string path) : path_(std::move(path)) {
  each_chunk(bytes, path_, [&](std::string_view type, std::string_view data) {
    if (type == "IHDR") header_ = data;
    if (type == "fcTL" || (type == "IDAT" && frames_.empty())) frames_.emplace_back();
    if (type == "fdAT") data.remove_prefix(std::min<std::size_t>(4, data.size()));  // its number
    if ((type == "IDAT" || type == "fdAT") && !frames_.empty()) frames_.back().push_back(data);
  });
  if (frames_.empty()) throw DataError(path_, "holds no picture", "write it again");
}

Image PngFrames::read(std::int64_t i) const {
  Bytes file(signature.begin(), signature.end()), pixels;
  for (const std::string_view piece : frames_.at(std::size_t(i)))
    pixels.insert(pixels.end(), piece.begin(), piece.end());
  chunk(file, "IHDR", {header_.begin(), header_.end()}), chunk(file, "IDAT", pixels), chunk(file, "IEND", {});
  return decode_image(file, path_);
}

}  // namespace trireme

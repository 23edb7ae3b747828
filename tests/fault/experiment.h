// A training of seconds that needs nothing from outside: pictures drawn here, prepared by `trireme data
// folder`.
#pragma once
#include "tests/fault/program.h"

#include <cstdint>
#include <map>
#include <optional>

#include <nlohmann/json.hpp>

namespace trireme::test {

inline std::string big_endian(std::uint32_t v) { return {char(v >> 24), char(v >> 16), char(v >> 8), char(v)}; }

inline std::string png_chunk(const std::string& type_and_data) {
  std::uint32_t crc = ~0u;
  for (const unsigned char c : type_and_data) {
    crc ^= c;
    for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  return big_endian(std::uint32_t(type_and_data.size() - 4)) + type_and_data + big_endian(~crc);
}

// An RGB picture of size x size pixels, or of another height; every number another one; stored, not compressed.
inline std::string png(int number, int size = 16, int height = 0) {
  if (height == 0) height = size;
  std::string raw;
  for (int y = 0; y < height; ++y) {
    raw += '\0';  // no filter
    for (int x = 0; x < size; ++x) {
      raw += char(x * number);
      raw += char(y * 3 + number * 2);
      raw += char(number * 5);
    }
  }
  std::uint32_t a = 1, b = 0;
  for (const unsigned char c : raw) a = (a + c) % 65521, b = (b + a) % 65521;
  const auto n = std::uint32_t(raw.size());
  const std::string stored = {'\x01', char(n), char(n >> 8), char(~n), char(~n >> 8)};
  return "\x89PNG\r\n\x1a\n" +
         png_chunk("IHDR" + big_endian(std::uint32_t(size)) + big_endian(std::uint32_t(height)) +
                   std::string("\x08\x02\0\0\0", 5)) +
         png_chunk("IDAT\x78\x01" + stored + raw + big_endian(b << 16 | a)) + png_chunk("IEND");
}

inline void draw_pictures(const fs::path& folder, int first, int count) {
  fs::create_directories(folder);
  for (int i = first; i < first + count; ++i) {
    write_text(folder / (std::to_string(i) + ".png"), png(i));
    write_text(folder / (std::to_string(i) + ".txt"),
               "picture number " + std::to_string(i) + " in color " + std::to_string(i % 7));
  }
}

// Empty, or why this build cannot prepare pictures and train on them: a reason to skip.
inline std::string missing_for_pairs() {
  static const std::string why = [] {
    std::string found;
    for (const auto& line : lines_of(run_program({"doctor"}, {}).out))
      for (const std::string library : {"PNG", "PCRE2"})
        if (line.starts_with("  " + library + " ") && line.find("not in this build") != line.npos)
          found += (found.empty() ? "built without " : " and ") + library;
    return found;
  }();
  return why;
}

// FOLDER/pairs.h5 from 90 pictures of three classes: 82 or so for training, 5 batches of 16 an epoch.
inline void prepare_pairs(const fs::path& folder) {
  for (int k = 0; k < 3; ++k) draw_pictures(folder / "pictures" / ("class " + std::to_string(k)), 1 + 30 * k, 30);
  const Outcome o =
      run_program({"data", "folder", "--from", "pictures", "--size", "16", "--out", "pairs.h5"}, {folder});
  if (o.code != 0) throw std::runtime_error("cannot prepare the pairs: " + o.err);
}

// An experiment on pairs.h5. width: of both towers, and with it the time of a step.
inline std::string experiment(int steps, int width, int patch, const std::string& more = "") {
  const std::string w = std::to_string(width);
  return "recipe: fastclip\nbatch_size: 16\nthreads: 1\nlog_every: 1\nsteps: " + std::to_string(steps) +
         "\ndata: {file: pairs.h5}\noptimizer: {lr: 1.0e-3}\nmodel: {embed_dim: 32, image_size: 16, "
         "patch_size: " +
         std::to_string(patch) + ", vision_width: " + w + ", vision_layers: 2, vision_heads: 2, context: 12, " +
         "vocab: 600, text_width: " + w + ", text_layers: 1, text_heads: 2}\n" + more;
}

// The steps that have a complete checkpoint, oldest first.
inline std::vector<std::int64_t> checkpoint_steps(const fs::path& run) {
  std::vector<std::int64_t> steps;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "ckpt", none)) {
    const std::string name = entry.path().filename().string();
    if (name.find('.') == name.npos && fs::exists(entry.path() / "manifest.json"))
      steps.push_back(std::stoll(name.substr(5)));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

inline nlohmann::json manifest_of(const fs::path& run, std::int64_t step) {
  const std::string name = std::to_string(step);
  return nlohmann::json::parse(
      read_text(run / "ckpt" / ("step_" + std::string(8 - name.size(), '0') + name) / "manifest.json"));
}

// Tensor (name@rank) to CRC of the newest checkpoint: equal maps are equal states, bit for bit.
inline std::map<std::string, std::string> final_state(const fs::path& run) {
  const auto steps = checkpoint_steps(run);
  if (steps.empty()) return {};
  const auto manifest = manifest_of(run, steps.back());
  std::map<std::string, std::string> crcs{{"step", std::to_string(steps.back())}};
  for (const auto& t : manifest["tensors"])
    crcs[t["name"].get<std::string>() + "@" + std::to_string(t["rank"].get<int>())] = t["crc32c"];
  return crcs;
}

// Complete lines of metrics.jsonl with `key`, in file order: step and value.
inline std::vector<std::pair<std::int64_t, double>> logged(const fs::path& run, const std::string& key = "loss") {
  std::vector<std::pair<std::int64_t, double>> found;
  for (const auto& line : lines_of(read_text(run / "metrics.jsonl"))) {
    const auto j = nlohmann::json::parse(line, nullptr, false);
    if (j.is_object() && j.contains(key) && j[key].is_number()) found.emplace_back(j["step"], j[key]);
  }
  return found;
}

inline std::int64_t last_step(const fs::path& run) {
  const auto steps = logged(run);
  return steps.empty() ? 0 : steps.back().first;
}

// Every file below `folder` with its size and a hash of its bytes (FNV-1a).
inline std::map<std::string, std::pair<std::size_t, std::uint64_t>> listing(const fs::path& folder) {
  std::map<std::string, std::pair<std::size_t, std::uint64_t>> files;
  std::error_code none;
  for (const auto& entry : fs::recursive_directory_iterator(folder, none)) {
    auto& [size, hash] = files[entry.path().lexically_relative(folder).string()];
    if (!entry.is_regular_file()) continue;
    const std::string bytes = read_text(entry.path());
    size = bytes.size();
    hash = 0xcbf29ce484222325ull;
    for (const unsigned char c : bytes) hash = (hash ^ c) * 0x100000001b3ull;
  }
  return files;
}

}  // namespace trireme::test

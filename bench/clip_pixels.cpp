// From JPEGs in tars to finished pixels of 224 x 224, f32: our reading against webdataset + torchvision with as many
// workers, of photographs with a shorter side of 256, 512 and 1,024. Crops are equal: our arm says which ones it takes.
// A step is one pass over all samples. With a GPU, one more row: pixels finished there.
#include "bench/bench.h"
#include "comm/device.h"
#include "comm/error.h"
#include "data/image_text/image_text.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include <ATen/ATen.h>
#include <c10/core/Event.h>

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

namespace trireme::bench {
namespace {

namespace fs = std::filesystem;
constexpr int side = 224, batch = 64, compared = 192, launched = 1024;
constexpr std::uint64_t seed = 11;

// The JPEGs of a folder's tars, in the order of their keys; read from the page cache.
class Tars : public Pairs {
 public:
  explicit Tars(const std::string& folder) : path_(folder) {
    std::vector<fs::path> tars;
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().extension() == ".tar") tars.push_back(entry.path());
    std::sort(tars.begin(), tars.end());
    for (const auto& tar : tars) index(tar);
    if (members_.empty()) throw DataError(folder, "no JPEGs in tars", "make them: bench/peers/clip_pixels.py --make");
  }
  ~Tars() override {
    for (const int fd : files_) close(fd);
  }
  std::int64_t size() const override { return std::ssize(members_); }
  const std::string& path() const override { return path_; }
  const std::string& identity() const override { return path_; }
  std::string caption(std::int64_t id) const override { return "picture number " + std::to_string(id); }
  std::int64_t caption_id(std::int64_t id) const override { return id; }
  std::int64_t class_id(std::int64_t) const override { return -1; }
  const std::vector<std::string>& classes() const override { return classes_; }
  Picture picture(std::int64_t id, const Shrink& shrink) const override {
    thread_local std::vector<std::uint8_t> bytes;
    const Member& m = members_.at(std::size_t(id));
    bytes.resize(m.bytes);
    if (pread(m.file, bytes.data(), m.bytes, m.offset) != std::ssize(bytes)) throw DataError(path_, "cannot be read");
    return decode_picture(bytes, "member " + std::to_string(id), {}, shrink);
  }
  std::vector<std::int64_t> train_ids(std::int64_t) const override {
    std::vector<std::int64_t> ids(members_.size());
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }
  std::vector<std::int64_t> held_out_ids(std::int64_t) const override { return {}; }
  double mean_bytes() const {
    double sum = 0;
    for (const auto& m : members_) sum += double(m.bytes);
    return sum / double(members_.size());
  }

 private:
  struct Member {
    int file;
    off_t offset;
    std::size_t bytes;
  };
  void index(const fs::path& tar) {
    const int fd = open(tar.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) throw DataError(tar.string(), "cannot be opened");
    files_.push_back(fd);
    char head[512];
    for (off_t at = 0; pread(fd, head, sizeof head, at) == sizeof head && head[0];) {
      const auto bytes = std::size_t(std::strtoull(head + 124, nullptr, 8));
      if (std::string(head, strnlen(head, 100)).ends_with(".jpg")) members_.push_back({fd, at + 512, bytes});
      at += 512 + off_t((bytes + 511) / 512 * 512);
    }
  }
  std::string path_;
  std::vector<int> files_;
  std::vector<Member> members_;
  std::vector<std::string> classes_;
};

double process_cpu_ms() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  const auto ms = [](const timeval& t) { return 1e3 * double(t.tv_sec) + 1e-3 * double(t.tv_usec); };
  return ms(u.ru_utime) + ms(u.ru_stime);
}

// The crops of the first epoch, for the peer: [left, top, width, height] by sample.
void write_boxes(const Tars& tars, const ImageTextOptions& o) {
  nlohmann::json boxes = nlohmann::json::array();
  for (std::int64_t id = 0; id < tars.size(); ++id) {
    const Picture p = tars.picture(id, [](int, int) { return 0.0; });
    const View v =
        random_view(Rng(seed, "augment", 0, std::uint64_t(id)), p.width, p.height, side, o.crop_scale, o.flip);
    boxes.push_back({v.left, v.top, v.width, v.height});
  }
  const std::string file = tars.path() + "/boxes.json";
  std::ofstream(file + ".new") << boxes.dump();
  fs::rename(file + ".new", file);
}

// Of the one launch that finishes `launched` pictures, or as many as there are: ms, mean of 20.
double launch_ms(const ImageTextDataset& data, std::span<const std::int64_t> ids) {
  const Batch all = data.read(ids.first(std::min<std::size_t>(launched, ids.size())), 0);
  const c10::Stream stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(at::Device(at::kCUDA, 0));
  c10::Event begin(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT), end(at::kCUDA, c10::EventFlag::BACKEND_DEFAULT);
  for (int i = 0; i < 5; ++i) data.pixels_of(all, at::kBFloat16);
  begin.record(stream);
  for (int i = 0; i < 20; ++i) data.pixels_of(all, at::kBFloat16);
  end.record(stream);
  end.synchronize();
  return begin.elapsedTime(end) / 20;
}

// --problem is the folder of the tars here.
void serve(const Options& o, Communicator&) {
  const Tars tars(o.problem);
  const Tokenizer tokenizer = Tokenizer::train(std::vector<std::string>{"picture number 1"}, 530);
  ImageTextOptions options;
  options.size = side, options.crop_scale = 0.9, options.seed = seed;
  options.threads = int(std::thread::hardware_concurrency());
  options.dct_scaling = o.arm != "whole";
  if (o.arm == "device") options.device = at::Device(at::kCUDA, 0);
  const ImageTextDataset data(tars, tokenizer, options);
  if (o.arm == "scaled") write_boxes(tars, options);
  const auto ids = tars.train_ids(0);
  const auto read = [&](std::int64_t i) {
    return data.read(std::span(ids).subspan(std::size_t(i), std::size_t(std::min(batch + i, tars.size()) - i)), 0);
  };
  Server server(o.serve, 0);
  while (const auto command = server.command()) {
    if (command->starts_with("pixels ")) {  // pixels COUNT FILE
      std::ofstream out(command->substr(command->rfind(' ') + 1), std::ios::binary);
      for (std::int64_t i = 0; i < std::min<std::int64_t>(compared, tars.size()); i += batch) {
        const at::Tensor pixels = data.pixels_of(read(i), at::kFloat).cpu();
        out.write(static_cast<const char*>(pixels.const_data_ptr()), std::streamsize(pixels.nbytes()));
      }
      nlohmann::json answer{{"jpeg_bytes", tars.mean_bytes()}, {"samples", tars.size()}};
      if (options.device.is_cuda()) answer["launch_ms_bf16"] = launch_ms(data, ids);
      server.reply(answer);
      continue;
    }
    std::vector<double> sums;
    const auto begin = std::chrono::steady_clock::now();
    const double cpu = process_cpu_ms();
    for (int k = std::atoi(command->c_str()); k > 0; --k) {
      at::Tensor last;
      for (std::int64_t i = 0; i < tars.size(); i += batch) last = data.pixels_of(read(i), at::kFloat);
      sums.push_back(last.mean().item<double>());  // a GPU is waited for here
    }
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    server.reply(ms, process_cpu_ms() - cpu, sums);
  }
}

// In levels of 255: the mean and the 99.9th percentile of absolute differences.
void add_differences(nlohmann::json& row, const std::string& ours, const std::string& peers) {
  std::ifstream a(ours, std::ios::binary), b(peers, std::ios::binary);
  const PixelStatistics statistics;
  std::vector<double> all;
  std::vector<float> x(side * side), y(side * side);
  for (int c = 0; a.read(reinterpret_cast<char*>(x.data()), side * side * 4) &&
                  b.read(reinterpret_cast<char*>(y.data()), side * side * 4);
       c = (c + 1) % 3)
    for (std::size_t i = 0; i < x.size(); ++i)
      all.push_back(std::abs(double(x[i]) - double(y[i])) * 255 * statistics.std_dev[c]);
  if (all.empty()) return;
  row["mean_levels"] = std::accumulate(all.begin(), all.end(), 0.0) / double(all.size());
  row["p999_levels"] = quantile(all, 0.999);
}

nlohmann::json run_problem(const Options& o, const std::string& name) {
  const Scratch scratch;
  const bool made = fs::is_directory(name);  // tars of one's own
  const std::string folder = made ? name : scratch.path("tars");
  if (!made) fs::create_directories(folder);
  const int cores = int(std::thread::hardware_concurrency());
  std::vector<std::unique_ptr<Arm>> arms;
  arms.push_back(std::make_unique<Arm>(
      "webdataset + torchvision",
      peer_arm("clip_pixels.py", {"--folder", folder, "--short", made ? "256" : name, "--size", std::to_string(side)},
               scratch.path("peer")),
      1, scratch.path("peer")));
  arms[0]->ready(std::chrono::seconds(300));
  std::vector<std::string> ours{"scaled", "whole"};
  if (device_runtime() && device_runtime()->count() > 0) ours.push_back("device");
  for (const auto& arm : ours) {
    arms.push_back(
        std::make_unique<Arm>("trireme " + arm, own_arm(o, arm, folder, 1, scratch.path(arm)), 1, scratch.path(arm)));
    if (!arms.back()->ready(std::chrono::seconds(300)) && arm == "scaled")
      throw DataError("bench " + o.name, arms.back()->skipped());
  }
  std::vector<Arm*> stepping;
  for (auto& arm : arms) stepping.push_back(arm.get());
  alternate(stepping, 1, o.blocks);
  std::vector<std::optional<nlohmann::json>> said;
  for (std::size_t i = 0; i < arms.size(); ++i)
    said.push_back(
        arms[i]->ask("pixels " + std::to_string(compared) + " " + scratch.path("pixels" + std::to_string(i))));
  nlohmann::json rows = nlohmann::json::array();
  const double samples = said[1] ? said[1]->at("samples").get<double>() : 0;
  for (std::size_t i = 0; i < arms.size(); ++i) {
    auto row = arms[i]->row();
    row["problem"] = fs::path(name).filename().string();
    if (arms[i]->skipped().empty()) {
      row["samples_per_s_core"] = 1e3 * samples / arms[i]->median_ms() / cores;
      row["samples_per_cpu_s"] = 1e3 * samples / arms[i]->median_cpu_ms();
      for (const char* key : {"jpeg_bytes", "samples", "launch_ms_bf16"})
        if (said[i] && said[i]->contains(key)) row[key] = said[i]->at(key);
      if (i > 0 && arms[0]->skipped().empty()) {
        row["times_peer"] = arms[0]->median_ms() / arms[i]->median_ms();
        row["times_peer_cpu"] = arms[0]->median_cpu_ms() / arms[i]->median_cpu_ms();
        add_differences(row, scratch.path("pixels" + std::to_string(i)), scratch.path("pixels0"));
      }
    }
    for (const char* none : {"losses", "last_loss", "steps"}) row.erase(none);
    rows.push_back(row);
  }
  return rows;
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  for (const std::string problem : {"256", "512", "1024"})
    if (o.problem.empty() || o.problem == problem)
      for (auto& row : run_problem(o, problem)) rows.push_back(row);
  if (rows.empty() && fs::is_directory(o.problem)) rows = run_problem(o, o.problem);
  if (rows.empty()) throw UsageError("--problem", o.problem, "256, 512, 1024, or a folder of tars");
  return rows;
}

const Benchmarks::Entry entry({"clip_pixels", "JPEGs in tars to pixels against webdataset + torchvision", run, serve});

}  // namespace
}  // namespace trireme::bench

#include "data/scenes/write.h"

#include "comm/error.h"
#include "data/image_text/encode.h"

#include <filesystem>
#include <fstream>

namespace trireme {
namespace {

namespace fs = std::filesystem;

void write_list(const fs::path& file, const std::vector<std::string>& lines) {
  std::ofstream out(file);
  for (const auto& line : lines) out << line << "\n";
  out.close();
  if (!out) throw DataError(file.string(), "cannot be written", "free space there");
}

void add_scene(const Scene& scene, const ScenesSpec& spec, std::int64_t i, const std::string& key, TarWriter& tar) {
  tar.add(key + ".jpg", encode_jpeg(render(scene, spec.size, spec.size, spec.grain)));
  tar.add(key + ".txt", describe(scene));
  tar.add(key + ".cls", std::to_string(scene_class_id(scene)));
  tar.add(key + ".json", "{\"key\": " + std::to_string(i) + "}");
}

}  // namespace

PrepareSpec scenes_data(const ScenesSpec& s) {
  PrepareSpec spec;
  spec.name = "scenes";
  spec.templates = scene_templates();
  const auto held_out = std::make_shared<const std::vector<Scene>>(held_out_scenes(s.seed, s.held_out));
  const auto at = [s, held_out](std::size_t i) {
    return std::int64_t(i) < s.pairs ? scene_at(s.seed, i) : (*held_out)[i - std::size_t(s.pairs)];
  };
  for (std::size_t i = 0; std::int64_t(i) < s.pairs + s.held_out; ++i) {
    const Scene scene = at(i);
    spec.items.push_back(
        {"scene " + std::to_string(i), describe(scene), scene_class(scene), std::int64_t(i) >= s.pairs});
  }
  spec.decode = [s, at](std::size_t i) { return render(at(i), s.size, s.size, s.grain); };
  return spec;
}

void scenes_to_tars(const ScenesSpec& s, const WriteTarsSpec& spec) {
  const fs::path out = spec.out;
  // Both before hours of drawing, and also where no test is wanted: an old one is not that of the new pairs.
  for (const auto& folder : {out, out / "test"}) remove_tars(folder.string(), spec.force);
  std::error_code error;
  fs::remove(out / "test" / "nshards.txt", error);
  BrokenSamples none;
  WriteTarsSpec training = spec;
  training.samples = s.pairs;
  training.add = [&](std::int64_t i, const std::string& key, TarWriter& tar) {
    add_scene(scene_at(s.seed, std::uint64_t(i)), s, i, key, tar);
  };
  write_tars(training, none);
  write_list(out / "classnames.txt", scene_classes());
  write_list(out / "zeroshot_classification_templates.txt", scene_templates());
  write_list(out / "dataset_type.txt", {"retrieval"});
  if (s.held_out == 0) return;
  const auto scenes = held_out_scenes(s.seed, s.held_out);
  WriteTarsSpec test = spec;
  test.out = (out / "test").string();
  test.samples = s.held_out;
  test.digits = 0;
  test.progress = {};
  test.add = [&](std::int64_t i, const std::string& key, TarWriter& tar) {
    add_scene(scenes[std::size_t(i)], s, i, key, tar);
  };
  write_tars(test, none);
  write_list(out / "test" / "nshards.txt", {std::to_string((s.held_out + test.shard - 1) / test.shard)});
}

}  // namespace trireme

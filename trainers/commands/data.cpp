#include "trainers/commands/data.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/content_hash.h"
#include "data/image_text/emoji.h"
#include "data/image_text/folder.h"
#include "data/image_text/openclipart.h"
#include "data/image_text/prepared.h"
#include "data/image_text/write_tars.h"
#include "data/scenes/write.h"
#include "data/text/text.h"
#include "framework/command.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>
#include <tuple>

#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

bool writes_tars(const DataOptions& o) { return o.name == "tar" || (o.name == "scenes" && o.format == "tar"); }

const char* const known_names[] = {"openclipart", "emoji",           "folder", "tars",        "tar",
                                   "scenes",      "cache-reference", "criteo", "criteo_like", "table",
                                   "flights",     "wordnet",         "gcide",  "arithmetic"};

std::string all_names() {
  std::string all;
  for (const char* name : known_names) all += (all.empty() ? "" : ", ") + std::string(name);
  return all;
}

// Options that a data set does not know would be passed over: a --test that holds nothing out.
void check_options(const DataOptions& o) {
  const DataOptions d;
  const std::tuple<const char*, bool, std::string> all[] = {
      {"--size", o.size != d.size, " openclipart emoji folder tars scenes "},
      {"--from", !o.from.empty(), " openclipart emoji folder tars tar criteo table flights wordnet gcide "},
      {"--pairs", o.pairs != d.pairs, " scenes "},
      {"--held-out", o.held_out != d.held_out, " scenes "},
      {"--format", o.format != d.format, " scenes "},
      {"--seed", o.seed != d.seed, " scenes arithmetic criteo_like criteo "},
      {"--type", o.type != d.type, " cache-reference "},
      {"--device", o.device != d.device, " cache-reference "},
      {"--tokenizer", !o.tokenizer.empty(), " cache-reference "},
      {"--batch", o.batch != d.batch, " cache-reference "},
      {"--day", !o.files.empty(), " criteo "},
      {"--max-ind-range", o.max_ind_range != d.max_ind_range, " criteo "},
      {"--drop-negatives", o.drop_negatives != d.drop_negatives, " criteo "},
      {"--broken-share", o.broken != d.broken, " criteo "},
      {"--level", o.level != d.level, " arithmetic "},
      {"--problems", o.problems != d.problems, " arithmetic "},
      {"--label", !o.label.empty(), " table "},
      {"--dense", !o.dense.empty(), " table "},
      {"--sparse", !o.sparse.empty(), " table "},
      {"--test", o.test != d.test, " table "},
      {"--shape", o.shape != d.shape, " criteo_like "},
      {"--scale", o.scale != d.scale, " criteo_like "},
      {"--samples", o.samples != d.samples, " criteo_like "},
      {"--test-samples", o.test_samples != d.test_samples, " criteo_like "}};
  for (const auto& [name, given, sets] : all)
    if (given && sets.find(" " + o.name + " ") == sets.npos)
      throw UsageError("trireme data " + o.name, std::string("knows no ") + name,
                       "leave it out; it is for" + sets.substr(0, sets.size() - 1));
}

void check(const DataOptions& o) {
  if (std::find(std::begin(known_names), std::end(known_names), o.name) == std::end(known_names))
    throw UsageError("trireme data", "unknown data set `" + o.name + "`", "known: " + all_names());
  check_options(o);
  if (o.size < 8 || o.size > 1024)
    throw UsageError("trireme data", "--size " + std::to_string(o.size), "choose 8 to 1024 pixels");
  if (o.threads < 0 || o.threads > 256)
    throw UsageError("trireme data", "--threads " + std::to_string(o.threads), "choose 1 to 256");
  if (o.name != "cache-reference" && !o.model.empty())
    throw UsageError("trireme data " + o.name, "takes no word after it: " + o.model, "leave it out, or see --from");
  const bool own = o.name == "folder" || o.name == "tars" || o.name == "tar";
  if (own && o.from.empty())
    throw UsageError("trireme data " + o.name, "--from is missing",
                     o.name == "tars" ? "name tars: shards/{00000..00041}.tar" : "name a folder or a CSV table");
  if (o.name == "scenes" && o.format != "h5" && o.format != "tar")
    throw UsageError("trireme data scenes", "--format " + o.format, "choose h5 or tar");
  if (writes_tars(o) && o.out.empty())
    throw UsageError("trireme data " + o.name, "--out is missing", "name the folder for the tars");
}

int threads_of(const DataOptions& o) {
  return o.threads > 0 ? o.threads : std::clamp(int(std::thread::hardware_concurrency()), 1, 256);
}

ScenesSpec scenes_of(const DataOptions& o) {
  ScenesSpec s;
  s.pairs = o.pairs, s.held_out = o.held_out, s.seed = std::uint64_t(o.seed), s.size = o.size;
  return s;
}

// Where the data comes from, in one spelling: what a prepared file has on record.
std::string source_of(const DataOptions& o) {
  if (o.name == "scenes")
    return std::to_string(o.pairs) + " pairs and " + std::to_string(o.held_out) + " held out of seed " +
           std::to_string(o.seed);
  if (!o.from.empty()) return real_path(o.from);
  return real_path(o.name == "emoji" ? emoji_font : openclipart_root);
}

PrepareSpec spec_for(const DataOptions& o) {
  if (o.name == "openclipart") return o.from.empty() ? openclipart() : openclipart(o.from);
  if (o.name == "emoji") return o.from.empty() ? emoji() : emoji(o.from);
  if (o.name == "scenes") {
    PrepareSpec spec = scenes_data(scenes_of(o));
    spec.source = source_of(o);
    return spec;
  }
  return o.name == "tars" ? tars_data(o.from) : folder_data(o.from);
}

// One file for each source: its readable name and a hash of its place, except for the packages' own places.
std::string default_path(const DataOptions& o) {
  const std::string source = source_of(o);
  DataOptions standard = o;
  standard.from.clear();
  if (o.name == "scenes" || (o.name != "folder" && o.name != "tars" && source == source_of(standard)))
    return prepared_path(o.name, o.size);
  std::error_code error;
  const fs::path place = source;
  std::string stem = (fs::is_directory(place, error) ? place.filename() : place.stem()).string();
  if (stem.size() > 100) {  // names of files end at 255 bytes; not within a character
    stem.resize(100);
    while (!stem.empty() && !valid_utf8(stem)) stem.pop_back();
  }
  ContentHash hash;
  hash.add(source.data(), source.size());
  return prepared_path(o.name + "-" + stem + "-" + hash.hex().substr(0, 8), o.size);
}

// True when `path` is a sound prepared file that can be used as it is.
bool keep_existing(const DataOptions& o, const std::string& path) {
  std::error_code error;
  if (o.force || !fs::exists(path, error)) return false;
  try {
    const ImageTextData data(path, 0);
    if (data.image_size() != o.size)
      throw DataError(
          path, "holds pictures of " + std::to_string(data.image_size()) + " pixels, not " + std::to_string(o.size),
          "give another --out, or --force to replace it");
    const std::string source = data.source(), wanted = source_of(o);  // files of older versions: as it was typed
    if (data.name() != o.name || (!source.empty() && source != utf8_or_latin1(wanted) && real_path(source) != wanted))
      throw DataError(path, "holds " + data.name() + " of " + source + ", not " + o.name + " of " + wanted,
                      "give another --out, or --force to replace it");
    std::printf("already prepared: %lld images in %s (--force prepares again)\n", static_cast<long long>(data.size()),
                path.c_str());
    return true;
  } catch (const DataError& e) {
    if (!o.out.empty()) throw;
    std::fprintf(stderr, "%s\nprepared anew\n", e.what());
    return false;
  }
}

void show_progress(std::size_t done, std::size_t total) {
  static const bool terminal = isatty(STDERR_FILENO);
  const int percent = int(100 * done / total);
  if (terminal) {
    std::fprintf(stderr, "\rdecoding %zu / %zu (%d %%)%s", done, total, percent, done == total ? "\n" : "");
  } else if (done == total || percent / 20 != int(100 * (done - std::min<std::size_t>(done, 256)) / total) / 20) {
    std::fprintf(stderr, "decoding %zu / %zu\n", done, total);
  }
}

void print_summary(const PrepareSpec& spec, const PrepareReport& r) {
  std::printf("%s: %lld images of %d x %d, %lld distinct captions, %lld classes\n", spec.name.c_str(),
              static_cast<long long>(r.images), spec.size, spec.size, static_cast<long long>(r.captions),
              static_cast<long long>(r.classes));
  std::printf("held out: %lld captions with %lld images\n", static_cast<long long>(r.held_out_captions),
              static_cast<long long>(r.held_out_images));
  std::printf("not used: %lld with the same pixels as another, %zu skipped\n", static_cast<long long>(r.duplicates),
              r.skipped.size());
  for (std::size_t i = 0; i < r.skipped.size() && i < 10; ++i) std::printf("  %s\n", r.skipped[i].c_str());
  if (r.skipped.size() > 10) std::printf("  and %zu more\n", r.skipped.size() - 10);
  for (const auto& note : spec.notes) std::printf("%s\n", note.c_str());
  std::printf("wrote %s in %.1f s\n", spec.out.c_str(), r.seconds);
}

int write_tars_command(const DataOptions& o) {
  const auto start = std::chrono::steady_clock::now();
  WriteTarsSpec spec;
  spec.out = o.out, spec.threads = threads_of(o), spec.force = o.force, spec.progress = show_progress;
  BrokenSamples left_out;
  std::int64_t samples = o.pairs;
  if (o.name == "tar")
    samples = pictures_to_tars(folder_data(o.from), spec, left_out);
  else
    scenes_to_tars(scenes_of(o), spec);
  if (const auto line = left_out.summary(samples + left_out.count()); !line.empty()) std::printf("%s\n", line.c_str());
  std::printf("wrote %lld pairs as tars into %s in %.1f s\n", static_cast<long long>(samples), o.out.c_str(),
              std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  const bool test = o.name == "scenes" && o.held_out > 0;
  std::printf("train on them with data.file=%s/%s\n", o.out.c_str(),
              test ? (" data.eval_file=" + o.out + "/test/").c_str() : "");
  return 0;
}

}  // namespace

int data_command(const DataOptions& o) {
  check(o);
  if (o.name == "cache-reference") return cache_reference(o);
  if (is_table_data(o.name)) return table_data(o);
  if (is_text_data(o.name)) return text_data(o);
  if (writes_tars(o)) return write_tars_command(o);
  std::error_code error;
  if (!o.out.empty() && (o.out.ends_with('/') || fs::is_directory(o.out, error)))
    throw UsageError("trireme data", "--out " + o.out + " is a folder", "name the file to write");
  const std::string path = o.out.empty() ? default_path(o) : o.out;
  if (keep_existing(o, path)) return 0;

  PrepareSpec spec = spec_for(o);
  spec.out = path;
  spec.size = o.size;
  spec.threads = threads_of(o);
  spec.progress = show_progress;
  const PrepareReport r = prepare_images(spec);

  print_summary(spec, r);
  return 0;
}

namespace {

const Commands::Entry registered(
    {"data", "prepare a data set, or features of it", [](CommandOptions& command) {
       const auto o = std::make_shared<DataOptions>();
       command.text(
           "name", o->name,
           "openclipart, emoji, scenes; folder, tars: your own; tar: a folder as tars; cache-reference MODEL DATA: "
           "a model's features of all pairs; of clicks: criteo, criteo_like, table: your CSV, flights; text: wordnet, "
           "gcide, arithmetic",
           command.required);
       command.text("model", o->model, "cache-reference: run folder of fastclip, or OpenCLIP folder");
       command.text("data", o->data,
                    "cache-reference: data as data.file names it, or an experiment (.yaml) or run on it");
       command.text("--out", o->out, "prepared file");
       command.number("--size", o->size, "pixels a side", {8, 1024});
       command.text(
           "--from", o->from,
           "your images: a folder, a CSV of filepath,title, or tars; criteo, table, flights: a file of clicks; "
           "wordnet, gcide: their place");
       command.number("--threads", o->threads, "that decode or parse; 0: one a core", {0, 256});
       command.number("--pairs", o->pairs, "scenes: pairs to train on", {1, 2000000000});
       command.number("--held-out", o->held_out, "scenes: pairs beside them", {0, 1000000});
       command.number("--seed", o->seed, "of scenes, arithmetic, criteo_like, and what --drop-negatives leaves out",
                      {0, 2000000000});
       command.text("--format", o->format, "scenes: h5, or tar for JPEG tars");
       command.text("--type", o->type, "cache-reference: f16 or f32");
       command.text("--device", o->device, "cache-reference: auto, cpu or cuda");
       command.text("--tokenizer", o->tokenizer, "cache-reference: CLIP merges file, where the model brings none");
       command.number("--batch", o->batch, "cache-reference: pairs at a time", {1, 65536});
       command.flag("--force", o->force, "prepare again");
       command.texts("--day", o->files, "criteo: a file of tab-separated lines; several days: repeat it, in order");
       command.number("--max-ind-range", o->max_ind_range, "criteo: categories modulo this; 0: as they are",
                      {0, 2000000000});
       command.text("--drop-negatives", o->drop_negatives, "criteo: share of the negatives that is left out");
       command.text("--broken-share", o->broken, "criteo: malformed lines allowed");
       command.number("--level", o->level, "arithmetic: 1 to 3", {1, 3});
       command.number("--problems", o->problems, "arithmetic: how many", {1, 2000000000});
       command.text("--label", o->label, "table: the column of 0 and 1");
       command.text("--dense", o->dense, "table: columns of numbers, with commas between them");
       command.text("--sparse", o->sparse, "table: columns of words or bags (a|b); NAME:mean averages a bag");
       command.text("--test", o->test, "table: share held out, at the end");
       command.text("--shape", o->shape, "criteo_like: kaggle, terabyte, mlperf_v1 or mlperf_v2");
       command.number("--scale", o->scale, "criteo_like: large tables have 1 / scale of their rows", {1, 1000000});
       command.number("--samples", o->samples, "criteo_like: to train on", {1, 2000000000});
       command.number("--test-samples", o->test_samples, "criteo_like: beside them", {1, 2000000000});
       return [o](const CommandLine&) { return data_command(*o); };
     }});

}  // namespace
}  // namespace trireme

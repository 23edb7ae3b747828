#include "trainers/commands/eval_data.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/eval_set.h"
#include "data/image_text/prepared.h"
#include "framework/config/tree.h"
#include "framework/models/zero_shot.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>

namespace trireme {
namespace {

std::vector<std::string> names_in(const std::string& file) {
  std::vector<std::string> names = read_list(file);
  if (names.empty()) throw DataError(file, "names nothing", "write one a line");
  return names;
}

// Names that the user gives take the place of those of the data, one for each class.
void rename_classes(EvalData& data, const EvalSpec& spec, std::size_t known) {
  if (spec.classes.empty()) return;
  data.classes = names_in(spec.classes);
  if (data.classes.size() != known)
    throw DataError(spec.classes,
                    "names " + std::to_string(data.classes.size()) + " classes, and " + spec.name() + " has " +
                        std::to_string(known),
                    "write the name of every class, one a line in the order of their numbers");
}

std::vector<std::string> files_of(const std::vector<std::string>& sources) {
  namespace fs = std::filesystem;
  std::vector<std::string> files;
  for (const auto& source : sources) {
    std::error_code error;
    const auto before = files.size();
    if (fs::is_directory(source, error)) {
      for (fs::directory_iterator entry(source, error); !error && entry != fs::end(entry); entry.increment(error))
        if (entry->path().extension() == ".tar") files.push_back(real_path(entry->path().string()));
    } else if (names_tars(source)) {
      for (const auto& tar : list_tars(source)) files.push_back(real_path(tar));
    }
    if (files.size() == before) files.push_back(real_path(source));
  }
  std::sort(files.begin(), files.end());
  return files;
}

EvalData whole_set(const EvalSpec& spec) {
  if (!spec.split.empty())
    throw UsageError("--split " + spec.split, spec.name() + " is a test set, which is taken whole", "leave it out");
  const auto set = std::make_shared<EvalSet>(open_eval_set(spec.name(), spec.source.broken_share));
  EvalData data;
  data.size = set->pairs->size();
  data.what = std::to_string(data.size) + " pictures of " + spec.name();
  data.picture = [set](std::int64_t i) { return set->pairs->picture(i); };
  data.captions = set->captions;
  data.notes = set->pairs->notes();
  data.is_set = true;
  data.identity = [set] { return set->pairs->identity(); };
  for (const auto& shard : set->pairs->index().shards()) data.files.push_back(shard.path);
  data.files = files_of(data.files);
  if (set->retrieval) return data;
  for (std::int64_t i = 0; i < data.size; ++i) data.labels.push_back(set->pairs->class_id(i));
  const auto most = data.labels.empty() ? 0 : *std::max_element(data.labels.begin(), data.labels.end()) + 1;
  data.classes = set->classes;
  rename_classes(data, spec, set->classes.empty() ? std::size_t(most) : set->classes.size());
  if (data.classes.empty())
    throw DataError(spec.name(), "has no classnames.txt", "write one, a name a line, or give --classes FILE");
  data.templates = set->templates;
  return data;
}

std::vector<std::int64_t> ids_of(const Pairs& pairs, const std::string& split, const EvalSpec& spec) {
  if (split == "held_out") return held_out_ids_of(pairs, spec.source);
  if (split == "train") return train_ids_of(pairs, spec.source, spec.max_per_caption);
  if (split != "all") throw UsageError("--split " + split, "no such part", "take held_out, train or all");
  std::vector<std::int64_t> ids = pairs.train_ids(spec.max_per_caption), held_out = pairs.held_out_ids(), all;
  std::merge(ids.begin(), ids.end(), held_out.begin(), held_out.end(), std::back_inserter(all));
  return all;
}

// Classes are those that occur, as in training; with names from the user all of the data's are candidates.
void add_classes(EvalData& data, const EvalSpec& spec, const Pairs& pairs, const std::vector<std::int64_t>& ids) {
  rename_classes(data, spec, pairs.classes().size());
  std::map<std::int64_t, std::int64_t> number_of;
  for (const auto id : ids) {
    const std::int64_t cls = pairs.class_id(id);
    if (!spec.classes.empty()) {
      if (cls < 0) throw DataError(spec.name(), "pair " + std::to_string(id) + " has no class", "leave --classes out");
      data.labels.push_back(cls);
      continue;
    }
    const auto [number, fresh] = number_of.emplace(cls, std::int64_t(data.classes.size()));
    if (fresh) data.classes.push_back(cls < 0 ? "something" : pairs.classes().at(std::size_t(cls)));
    data.labels.push_back(number->second);
  }
}

EvalData part_of_pairs(const EvalSpec& spec) {
  const std::shared_ptr<const Pairs> pairs = open_pairs(spec.source);
  const bool prepared = pairs->prepared();
  const std::string split = !spec.split.empty() ? spec.split : prepared ? spec.prepared_split : "all";
  const auto ids = std::make_shared<const std::vector<std::int64_t>>(ids_of(*pairs, split, spec));
  if (ids->empty()) throw DataError(spec.name(), "has no pair in the part `" + split + "`", "take another --split");
  EvalData data;
  data.size = std::int64_t(ids->size());
  data.what = std::to_string(data.size) + (split == "all" ? " pairs of " : " pairs (" + split + ") of ") + spec.name();
  data.picture = [pairs, ids](std::int64_t i) { return pairs->picture((*ids)[std::size_t(i)]); };
  data.notes = pairs->notes();
  data.identity = [pairs] { return pairs->identity(); };
  const std::string& eval_file = spec.source.eval_file;  // takes the place of what the sources hold out
  std::vector<std::string> sources;
  if (eval_file.empty() || split != "held_out") sources = spec.source.files;
  if (!eval_file.empty() && split != "train") sources.push_back(eval_file);
  data.files = files_of(sources);
  for (const auto id : *ids) data.captions.push_back({pairs->caption(id)});
  if (!pairs->classes().empty()) add_classes(data, spec, *pairs, *ids), data.templates = pairs->templates();
  return data;
}

// The texts of a key: one, or a list.
std::vector<std::string> texts_at(const config::Node& data, std::string_view key) {
  const config::Node* node = data.find(key);
  if (!node) return {};
  if (node->kind == config::Node::Kind::text) return {node->text};
  std::vector<std::string> texts;
  for (const auto& item : node->items) texts.push_back(item.text);
  return texts;
}

}  // namespace

std::string EvalSpec::name() const {
  std::string name;
  for (const auto& file : source.files) name += (name.empty() ? "" : ", ") + file;
  return name;
}

EvalSpec data_of_run(const std::string& run) { return data_of_config(run + "/config.resolved.yaml"); }

EvalSpec data_of_config(const std::string& file) {
  const config::Node root = config::load_tree(file, {});
  const config::Node* data = root.find("data");
  if (!data) throw DataError(file, "names no data", "give --data");
  EvalSpec of_run;
  of_run.may_be_set = false, of_run.split = "held_out";
  PairsSpec& spec = of_run.source;
  spec.files = texts_at(*data, "files");
  if (spec.files.empty()) spec.files = texts_at(*data, "file");
  for (const auto& weight : texts_at(*data, "weights")) spec.weights.push_back(std::atoll(weight.c_str()));
  const auto text = [&](std::string_view key, std::string& value) {
    if (const auto texts = texts_at(*data, key); !texts.empty()) value = texts.front();
  };
  text("eval_file", spec.eval_file);
  text("index_key", spec.index_key);
  text("image_column", spec.image_column);
  text("caption_column", spec.caption_column);
  const auto number = [&](std::string_view key, double& value) {
    if (const auto texts = texts_at(*data, key); !texts.empty()) value = std::strtod(texts.front().c_str(), nullptr);
  };
  number("held_out", spec.held_out);
  number("broken_share", spec.broken_share);
  const auto part = [&](std::string_view key, Part& value) {
    for (const auto& text : texts_at(*data, key)) value.push_back(std::strtod(text.c_str(), nullptr));
  };
  part("part", spec.part);
  part("eval_part", spec.eval_part);
  double most = 0;
  number("max_per_caption", most);
  of_run.max_per_caption = std::int64_t(most);
  return of_run;
}

EvalData open_eval_data(const EvalSpec& spec) {
  EvalData data = spec.may_be_set && is_eval_set(spec.name()) ? whole_set(spec) : part_of_pairs(spec);
  for (const auto& [option, file] : {std::pair("--classes", spec.classes), std::pair("--templates", spec.templates)})
    if (!file.empty() && data.labels.empty())
      throw UsageError(option, spec.name() + " has no classes: its pictures have captions alone", "leave it out");
  if (!spec.templates.empty()) data.templates = names_in(spec.templates);
  if (data.templates.empty()) data.templates = {plain_template};
  data.name = spec.name();
  data.broken_share = spec.source.broken_share;
  return data;
}

EvalData open_probe_data(const std::string& file, EvalSpec& tested, EvalData& data) {
  EvalSpec spec;
  spec.source = tested.source;  // held out as there: equal data have equal identities
  spec.source.files = {file};
  spec.source.eval_file.clear(), spec.source.index_key.clear(), spec.source.weights.clear();
  spec.prepared_split = "train";
  EvalData train = open_eval_data(spec);
  const bool same = train.files == data.files || train.identity() == data.identity();
  const bool apart = std::find_first_of(train.files.begin(), train.files.end(), data.files.begin(), data.files.end()) ==
                     train.files.end();
  if (!same && apart) return train;
  if (!same || train.is_set || data.is_set || !tested.source.eval_file.empty())
    throw UsageError("--linear-probe " + file, same ? "is what it is tested on" : "is in part what it is tested on",
                     "name other data to train on");
  if (!tested.split.empty() && tested.split != "held_out")
    throw UsageError("--split " + tested.split, "has pictures that --linear-probe trains on",
                     "leave it out: the held-out part is tested");
  tested.split = "held_out";
  data = open_eval_data(tested);
  spec.source = tested.source;
  spec.split = "train";
  return open_eval_data(spec);
}

}  // namespace trireme

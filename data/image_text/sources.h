// Several sources as one: numbered one after another, each with a weight.
#pragma once
#include "data/image_text/pairs.h"

#include <memory>
#include <unordered_map>

namespace trireme {

struct PairsSource {
  std::unique_ptr<Pairs> pairs;
  std::int64_t weight = 1;  // times that each pair occurs in an epoch (OpenCLIP's upsampling factor, as a whole number)
  bool test = false;        // all of it is held out, and nothing of the others
};

// Ids: those of the first source, then those of the second, ...: they stay while the sources do. train_ids() repeats an
// id as often as its weight says. Equal class names are one class.
class JoinedPairs : public Pairs {
 public:
  explicit JoinedPairs(std::vector<PairsSource> sources);

  std::int64_t size() const override { return size_; }
  const std::string& path() const override { return path_; }
  const std::string& identity() const override { return identity_; }
  std::string caption(std::int64_t id) const override;
  std::int64_t caption_id(std::int64_t id) const override;
  std::int64_t class_id(std::int64_t id) const override;
  const std::vector<std::string>& classes() const override { return classes_; }
  std::vector<std::string> templates() const override;  // of the first held-out source that has any
  Picture picture(std::int64_t id, const Shrink& shrink = {}) const override;
  std::vector<int> prepared_sizes() const override;
  std::vector<std::int64_t> train_ids(std::int64_t max_per_caption = 0) const override;
  std::vector<std::int64_t> held_out_ids(std::int64_t max_per_caption = 0) const override;
  std::vector<std::string> notes() const override;

 private:
  struct Place {
    std::size_t source;
    std::int64_t id;
  };
  Place place(std::int64_t id) const;
  void join_classes();
  void join_captions();

  std::vector<PairsSource> sources_;
  std::vector<std::int64_t> first_;                              // of each source
  std::vector<std::vector<std::int64_t>> class_;                 // of each source: its class -> ours
  std::unordered_map<std::int64_t, std::int64_t> same_caption_;  // of held-out pairs whose caption several sources have
  std::int64_t size_ = 0;
  bool has_test_ = false;
  std::string path_, identity_;
  std::vector<std::string> classes_;
};

}  // namespace trireme

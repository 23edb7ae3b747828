// What a folder and a table of the user's own pictures share: pictures below one folder, their captions, and a word
// about everything that is not used.
#pragma once
#include "data/image_text/prepared.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

class OwnPictures {
 public:
  explicit OwnPictures(std::filesystem::path root);  // canonical

  // A picture (absolute, or relative to the root) and the bytes of its caption. What cannot be used is skipped, its
  // line begins with `place`: a picture outside the root, no caption, bytes that are no text. The class is the
  // picture's folder below the root.
  void add(const std::filesystem::path& picture, std::string_view caption, const std::string& place);
  void skip(const std::string& place, const std::string& why);
  void note(std::string line) { spec_.notes.push_back(std::move(line)); }
  std::vector<std::string>& skipped() { return spec_.skipped; }

  const std::filesystem::path& root() const { return root_; }
  // Where `path` really is, which must be below the root: else DataError at `place`.
  std::filesystem::path inside(const std::filesystem::path& path, const std::string& place) const;

  // Call once, last. With notes on encodings other than UTF-8 and on captions that were cut.
  PrepareSpec finish();

 private:
  struct Tally {
    std::int64_t count = 0;
    std::string first;
    void add(const std::string& place) {
      if (count++ == 0) first = place;
    }
  };
  void note(const Tally& tally, const std::string& what);

  std::filesystem::path root_;
  PrepareSpec spec_;
  std::shared_ptr<std::vector<std::string>> files_ = std::make_shared<std::vector<std::string>>();
  Tally latin1_, utf16_, cut_;
};

}  // namespace trireme

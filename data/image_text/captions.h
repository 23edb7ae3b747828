// Short English captions from clip-art titles, keywords, and file and folder names: what is seen, nobody's
// name.
#pragma once
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct CaptionSource {
  std::string title;
  std::vector<std::string> keywords;
  std::vector<std::string> agents;   // names that must not appear
  std::string stem;                  // file name without extension
  std::vector<std::string> folders;  // from the root down
};

// Lower-case ASCII words of a title or file name: accents folded, camelCase and punctuation split; addresses,
// URLs and "hash(0x...)" dropped.
std::vector<std::string> caption_words(std::string_view raw);

// Knows the whole collection: which titles name a series rather than a picture, and how common each keyword
// is.
class CaptionMaker {
 public:
  explicit CaptionMaker(const std::vector<CaptionSource>& all);

  // "title, keyword, keyword, ...": at most 8 words of title and 4 keywords that add words. "" when nothing
  // is left.
  std::string operator()(const CaptionSource& s) const;

 private:
  std::set<std::string> series_;              // titles shared by many files of other names
  std::map<std::string, int> keyword_count_;  // files that have the keyword
};

}  // namespace trireme

#include "data/image_text/captions.h"

#include "data/text/text.h"

#include <algorithm>
#include <cctype>

namespace trireme {
namespace {

using Words = std::vector<std::string>;

bool is_number(std::string_view w) { return !w.empty() && w.find_first_not_of("0123456789") == w.npos; }

std::string join(const Words& words) {
  std::string out;
  for (const auto& w : words) out += (out.empty() ? "" : " ") + w;
  return out;
}

// One form for singular and plural, to see that a keyword adds nothing.
std::string base_form(std::string w) {
  if (w.size() > 4 && w.ends_with("ies")) return w.substr(0, w.size() - 3) + "y";
  for (const char* singular : {"us", "as", "is", "ss"})
    if (w.ends_with(singular)) return w;
  if (w.size() > 4 && (w.ends_with("sses") || w.ends_with("xes") || w.ends_with("shes") || w.ends_with("ches")))
    return w.substr(0, w.size() - 2);
  if (w.size() > 3 && w.ends_with("s")) w.pop_back();
  return w;
}

const std::set<std::string>& noise() {  // about the library or the upload, not about the picture
  static const std::set<std::string> words = {
      "clipart",    "cliparts", "svg",       "openclipart", "ocal",   "untitled",   "unsorted", "submission",
      "sibmission", "title",    "unknown",   "none",        "na",     "misc",       "magick",   "hash",
      "gnome",      "kde",      "nuvola",    "iconset",     "xfig",   "inkscape",   "png",      "gif",
      "jpg",        "eps",      "webpage",   "theme",       "themes", "collection", "various",  "drawing",
      "picture",    "remix",    "gramastar", "r16",         "md",     "sm",         "aiga",     "dev"};
  return words;
}

const std::map<std::string, std::string>& respelled() {
  static const std::map<std::string, std::string> words = {{"mapsym", "map symbol"},
                                                           {"appicon", "application icon"},
                                                           {"weathersym", "weather symbol"},
                                                           {"networksym", "network"},
                                                           {"icecream", "ice cream"},
                                                           {"roadsign", "road sign"},
                                                           {"roadsigns", "road signs"},
                                                           {"northamerica", "north america"},
                                                           {"southamerica", "south america"},
                                                           {"unitedstates", "united states"},
                                                           {"musicstuff", "music"},
                                                           {"signalflag", "signal flag"},
                                                           {"bodypart", "body part"},
                                                           {"arrowshape", "arrow"},
                                                           {"stickmen", "stick man"},
                                                           {"stickman", "stick man"},
                                                           {"baloon", "balloon"},
                                                           {"bw", "black and white"},
                                                           {"fc", "flowchart"},
                                                           {"transport", "transportation"},
                                                           {"filesystems", "file"},
                                                           {"sallite", "satellite"},
                                                           {"mimetypes", "file type"},
                                                           {"filesystem", "file"},
                                                           {"housecats", "cats"},
                                                           {"smilies", "smileys"},
                                                           {"roadsymbols", "road symbols"},
                                                           {"uparrow", "up arrow"},
                                                           {"downarrow", "down arrow"},
                                                           {"leftarrow", "left arrow"},
                                                           {"rightarrow", "right arrow"}};
  return words;
}

const std::set<std::string>& dull_keywords() {
  static const std::set<std::string> phrases = {"special",
                                                "recreation",
                                                "signs and symbol",
                                                "united nations member",
                                                "clip art",
                                                "public domain",
                                                "image",
                                                "vector",
                                                "other",
                                                "sign",
                                                "duplicate",
                                                "mime type",
                                                "aiga symbol",
                                                "lemon theme icon",
                                                "art",
                                                "i",
                                                "a",
                                                "the",
                                                "and",
                                                "work",
                                                "hotel icon"};
  return phrases;
}

Words respell(const Words& in) {
  Words out;
  for (const auto& w : in) {
    const auto it = respelled().find(w);
    if (it == respelled().end()) {
      out.push_back(w);
    } else {
      for (auto& part : caption_words(it->second)) out.push_back(part);
    }
  }
  return out;
}

// Serial numbers: "guitar1", "baloon1 04", "house 2" lose them, "route 66" and "9 mm gun" keep them.
void drop_series_numbers(Words& words) {
  while (words.size() > 1 && is_number(words.back()) &&
         (words.back()[0] == '0' || std::stol(words.back().substr(0, 6)) < 30))
    words.pop_back();
  for (auto& w : words) {
    const auto letters = w.find_last_not_of("0123456789") + 1;
    if (letters >= 3 && letters < w.size()) w.resize(letters);
  }
}

Words agent_words(const CaptionSource& s) {
  Words out;
  for (const auto& agent : s.agents)
    for (const std::string& text : {agent, html_unescape(agent)}) {
      for (auto& w : caption_words(text)) out.push_back(w);
      std::string flat;  // the letters of an address are often the file name's author
      for (char c : fold_latin(text)) flat += std::isalnum(static_cast<unsigned char>(c)) ? char(std::tolower(c)) : ' ';
      for (auto& w : caption_words(flat)) out.push_back(w);
    }
  static const std::set<std::string> common = {"the",    "of",     "open",    "clip", "art", "library",
                                               "public", "domain", "project", "and",  "on",  "a",
                                               "work",   "based",  "http",    "www",  "org", "com"};
  std::erase_if(out, [](const auto& w) { return common.contains(w); });
  return out;
}

bool is_agent(const std::string& w, const Words& agents) {
  return std::find(agents.begin(), agents.end(), w) != agents.end();
}

// File names end in the author, often cut short, and a number: crazy_monkey_shandy_brow_01.
void drop_author_tail(Words& words, const Words& agents) {
  auto author = [&](const std::string& w) {
    return std::any_of(agents.begin(), agents.end(), [&](const auto& a) { return a.starts_with(w); });
  };
  auto serial = [](const std::string& w) {
    return is_number(w) ||
           (w.size() <= 3 && w[0] == '0' && std::isdigit(static_cast<unsigned char>(w[w.size() / 2]))) || w == "01r" ||
           w == "r";
  };
  while (words.size() > 1 && serial(words.back())) words.pop_back();
  while (words.size() > 1 && author(words.back())) words.pop_back();
}

void drop_noise(Words& words) {
  for (std::size_t i = 0; i + 1 < words.size();) {
    if (words[i] == "clip" && words[i + 1] == "art") {
      words.erase(words.begin() + i, words.begin() + i + 2);
    } else if (words[i] == "b" && i + 2 < words.size() && words[i + 1] == "and" && words[i + 2] == "w") {
      words[i] = "black", words[i + 2] = "white";
    } else {
      ++i;
    }
  }
  std::erase_if(words, [](const auto& w) { return noise().contains(w); });
  const bool letters =
      std::any_of(words.begin(), words.end(), [](const auto& w) { return w.size() > 1 && !is_number(w); });
  if (!letters) words.clear();
}

Words title_words(const CaptionSource& s, const Words& agents) {
  Words words = caption_words(s.title);
  const auto by = std::find(words.begin(), words.end(), "by");
  if (by != words.end() && (by == words.begin() || (by + 1 != words.end() && is_agent(*(by + 1), agents))))
    words.erase(by, words.end());
  if (std::all_of(words.begin(), words.end(), [&](const auto& w) { return is_agent(w, agents) || is_number(w); }))
    words.clear();
  std::size_t keep = words.size();
  while (keep > 0 && words[keep - 1].size() > 3 && is_agent(words[keep - 1], agents)) --keep;
  if (words.size() - keep >= 2) words.resize(keep);  // a full name at the end
  drop_noise(words);
  drop_series_numbers(words);
  return respell(words);
}

bool in_folder(const CaptionSource& s, std::string_view name) {
  return std::find(s.folders.begin(), s.folders.end(), name) != s.folders.end();
}

// simple_h_k: suit and rank of a playing card.
Words card_words(const Words& stem) {
  static const std::map<std::string, std::string> suits = {
      {"c", "clubs"}, {"d", "diamonds"}, {"h", "hearts"}, {"s", "spades"}};
  static const std::map<std::string, std::string> ranks = {{"a", "ace"}, {"j", "jack"}, {"q", "queen"}, {"k", "king"}};
  if (stem.size() != 3 || !suits.contains(stem[1])) return {};
  const auto rank = ranks.find(stem[2]);
  return {rank == ranks.end() ? stem[2] : rank->second, "of", suits.at(stem[1])};
}

Words stem_words(const CaptionSource& s, const Words& agents) {
  Words words = caption_words(s.stem);
  if (in_folder(s, "cards"))
    if (Words card = card_words(words); !card.empty()) return card;
  drop_author_tail(words, agents);
  Words parts;  // "63pt11step", "2downarrow": numbers of a series
  for (const auto& w : words)
    for (std::size_t i = 0; i < w.size();) {
      const bool digits = std::isdigit(static_cast<unsigned char>(w[i]));
      const auto end =
          std::min(digits ? w.find_first_not_of("0123456789", i) : w.find_first_of("0123456789", i), w.size());
      if (!digits && end - i > 1) parts.push_back(w.substr(i, end - i));
      i = end;
    }
  words = std::move(parts);
  std::erase_if(words, [](const auto& w) { return w == "fs" || w == "etiquette" || w == "pt" || w == "step"; });
  drop_noise(words);
  return respell(words);
}

Words keyword_words(const std::string& raw, const Words& agents) {
  Words words = respell(caption_words(raw));
  if (words.size() > 3 || words.empty()) return {};
  if (std::all_of(words.begin(), words.end(), [&](const auto& w) {
        return noise().contains(w) || is_number(w) || w.size() < 2 || w.starts_with("hash") || is_agent(w, agents);
      }))
    return {};
  words.back() = base_form(words.back());  // "animals" and "animal" are one keyword
  return dull_keywords().contains(join(words)) ? Words{} : words;
}

// The file's own keywords, then its folders.
std::vector<Words> keywords(const CaptionSource& s, const Words& agents) {
  std::vector<Words> out;
  for (const auto& k : s.keywords) out.push_back(keyword_words(k, agents));
  for (const auto& folder : s.folders)
    if (!folder.ends_with("-theme")) out.push_back(keyword_words(folder, agents));
  std::erase_if(out, [](const auto& k) { return k.empty(); });
  return out;
}

}  // namespace

Words caption_words(std::string_view raw) {
  const std::string text = fold_latin(html_unescape(raw));
  Words out;
  for (std::size_t i = 0; i < text.size();) {
    const auto end = std::min(text.find_first_of(" \t\r\n", i), text.size());
    std::string token = text.substr(i, end - i);
    i = end + 1;
    std::string lower;
    for (char c : token) lower += char(std::tolower(static_cast<unsigned char>(c)));
    if (token.find('@') != token.npos || token.find("://") != token.npos || lower.starts_with("www.") ||
        lower.starts_with("hash(0x"))
      continue;
    std::string word;
    auto flush = [&] {
      if (!word.empty()) out.push_back(std::move(word));
      word.clear();
    };
    for (std::size_t k = 0; k < token.size(); ++k) {
      const auto c = static_cast<unsigned char>(token[k]);
      if (c == '\'') continue;
      if (!std::isalnum(c)) {
        flush();
        continue;
      }
      if (k > 0 && std::isupper(c) && std::islower(static_cast<unsigned char>(token[k - 1]))) flush();
      word += char(std::tolower(c));
    }
    flush();
  }
  return out;
}

CaptionMaker::CaptionMaker(const std::vector<CaptionSource>& all) {
  std::map<std::string, int> titles;
  for (const auto& s : all) {
    const Words agents = agent_words(s);
    ++titles[join(title_words(s, agents))];
    std::set<std::string> seen;
    for (const auto& k : keywords(s, agents)) seen.insert(join(k));
    for (const auto& k : seen) ++keyword_count_[k];
  }
  for (const auto& [title, files] : titles)
    if (files >= 8) series_.insert(title);
}

std::string CaptionMaker::operator()(const CaptionSource& s) const {
  const Words agents = agent_words(s);
  Words head = title_words(s, agents);
  std::string lower_title = fold_latin(s.title);
  std::transform(lower_title.begin(), lower_title.end(), lower_title.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  // "Clipart by NAME - X" and "Part of the X collection" name the series' first file.
  const bool bad = lower_title.starts_with("clipart by") || lower_title.starts_with("part of");
  Words series;
  if (bad || head.empty() || series_.contains(join(head))) {
    if (!bad && head.size() <= 3) series = head;
    head = stem_words(s, agents);
  }
  if (head.size() > 8) head.resize(8);

  std::set<std::string> used;
  for (const auto& w : head) used.insert(base_form(w));
  std::string caption = join(head);
  auto add = [&](const Words& phrase) {
    const bool adds =
        std::any_of(phrase.begin(), phrase.end(), [&](const auto& w) { return !used.contains(base_form(w)); });
    if (!adds || phrase.empty()) return false;
    for (const auto& w : phrase) used.insert(base_form(w));
    caption += (caption.empty() ? "" : ", ") + join(phrase);
    return true;
  };

  int added = 0;
  for (const auto& folder : s.folders)  // the drawing style of an icon theme is visible
    if (folder.ends_with("-theme")) added += add({folder.substr(0, folder.size() - 6), "theme"});
  if (!series.empty() && added == 0) added += add(series);

  std::vector<std::pair<int, std::string>> ranked;
  std::map<std::string, Words> phrases;
  for (Words& phrase : keywords(s, agents)) {
    if (phrases.contains(join(phrase))) continue;
    const auto known = keyword_count_.find(join(phrase));
    const int count = known == keyword_count_.end() ? 0 : known->second;
    if (count >= 3) ranked.emplace_back(count, join(phrase));  // a word seen once or twice teaches nothing
    phrases[join(phrase)] = std::move(phrase);
  }
  std::sort(ranked.begin(), ranked.end());
  // The broadest word first, so that it always has a place; then from the rarest on.
  if (ranked.size() > 1) std::rotate(ranked.begin(), ranked.end() - 1, ranked.end());
  for (const auto& [count, phrase] : ranked)
    if (added < 4) added += add(phrases[phrase]);

  return caption;
}

}  // namespace trireme

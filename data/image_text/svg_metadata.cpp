#include "data/image_text/svg_metadata.h"

#include "data/text/text.h"

#include <algorithm>

namespace trireme {
namespace {

constexpr std::size_t max_depth = 64, max_text = 1024, max_items = 128;

std::string_view local_name(std::string_view tag) {
  const auto end = tag.find_first_of(" \t\r\n/>");
  tag = tag.substr(0, end);
  const auto colon = tag.rfind(':');
  return colon == tag.npos ? tag : tag.substr(colon + 1);
}

// Position of the '>' that closes a tag, quotes respected; npos when there is none.
std::size_t tag_end(std::string_view s, std::size_t i) {
  char quote = 0;
  for (; i < s.size(); ++i) {
    if (quote) {
      if (s[i] == quote) quote = 0;
    } else if (s[i] == '"' || s[i] == '\'') {
      quote = s[i];
    } else if (s[i] == '>') {
      return i;
    }
  }
  return s.npos;
}

class Scanner {
 public:
  explicit Scanner(std::string_view s) : s_(s) {}

  SvgMetadata run() {
    std::size_t i = 0;
    while (i < s_.size() && !done_) {
      const std::size_t open = s_.find('<', i);
      if (inside_) add_text(s_.substr(i, open == s_.npos ? open : open - i));
      if (open == s_.npos) break;
      i = markup(open);
    }
    return std::move(out_);
  }

 private:
  std::size_t skip(std::size_t from, std::string_view mark) const {
    const std::size_t end = s_.find(mark, from);
    return end == s_.npos ? s_.size() : end + mark.size();
  }

  std::size_t markup(std::size_t i) {
    const std::string_view rest = s_.substr(i);
    if (rest.starts_with("<!--")) return skip(i + 4, "-->");
    if (rest.starts_with("<?")) return skip(i + 2, "?>");
    if (rest.starts_with("<![CDATA[")) {
      const std::size_t end = s_.find("]]>", i);
      if (inside_) add_text(s_.substr(i + 9, end == s_.npos ? end : end - i - 9));
      return end == s_.npos ? s_.size() : end + 3;
    }
    if (rest.starts_with("<!")) return skip(i, ">");
    const std::size_t end = tag_end(s_, i);
    if (end == s_.npos) return s_.size();
    const std::string_view tag = s_.substr(i + 1, end - i - 1);
    if (tag.starts_with("/")) {
      close(local_name(tag.substr(1)));
    } else if (!tag.ends_with("/")) {
      open(local_name(tag));
    }
    return end + 1;
  }

  void open(std::string_view name) {
    if (name == "metadata") inside_ = true;
    if (!inside_) return;
    if (stack_.size() < max_depth) stack_.push_back(name);
    text_.clear();
  }

  void close(std::string_view name) {
    if (!inside_) return;
    take(name);
    text_.clear();
    const auto it = std::find(stack_.rbegin(), stack_.rend(), name);
    if (it != stack_.rend()) stack_.erase(it.base() - 1, stack_.end());
    if (name == "metadata") done_ = true;
  }

  bool within(std::string_view name) const { return std::find(stack_.begin(), stack_.end(), name) != stack_.end(); }

  void take(std::string_view name) {
    const bool agent =
        within("Agent") || within("creator") || within("publisher") || within("rights") || within("contributor");
    std::string value = html_unescape(utf8_or_latin1(text_));
    const auto first = value.find_first_not_of(" \t\r\n");
    if (first == value.npos) return;
    value = value.substr(first, value.find_last_not_of(" \t\r\n") + 1 - first);
    if (name == "title" && agent) {
      if (out_.agents.size() < max_items) out_.agents.push_back(value);
    } else if (name == "title" && out_.title.empty()) {
      out_.title = value;
    } else if (name == "li" && within("subject") && out_.keywords.size() < max_items) {
      out_.keywords.push_back(value);
    }
  }

  void add_text(std::string_view t) { text_ += t.substr(0, max_text - std::min(max_text, text_.size())); }

  std::string_view s_;
  std::vector<std::string_view> stack_;
  std::string text_;
  bool inside_ = false, done_ = false;
  SvgMetadata out_;
};

}  // namespace

SvgMetadata read_svg_metadata(std::string_view bytes) { return Scanner(bytes).run(); }

}  // namespace trireme

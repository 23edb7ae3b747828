#include "data/text/unicode.h"

#include "data/text/text.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>

namespace trireme {
namespace {

struct Lower {
  char32_t first, last;
  int step, delta;
};
struct Range {
  char32_t first, last;
};
struct Combining {
  char32_t first, last;
  int order;
};
struct Decomposition {
  char32_t c, a, b;  // b = 0: a alone
  bool composes;
};
struct Form {
  char32_t c;
  std::u32string_view text;
};
#include "data/text/unicode_tables.inc"

template <class T, std::size_t N>
const T* find_range(const T (&table)[N], char32_t c) {
  const T* it =
      std::lower_bound(std::begin(table), std::end(table), c, [](const T& r, char32_t x) { return r.last < x; });
  return it != std::end(table) && it->first <= c ? it : nullptr;
}
template <class T, std::size_t N>
const T* find_char(const T (&table)[N], char32_t c) {
  const T* it = std::lower_bound(std::begin(table), std::end(table), c, [](const T& r, char32_t x) { return r.c < x; });
  return it != std::end(table) && it->c == c ? it : nullptr;
}

int combining_order(char32_t c) {
  const Combining* r = c < 0x300 ? nullptr : find_range(combining_table, c);
  return r ? r->order : 0;
}

// Hangul syllables are composed by arithmetic.
constexpr char32_t s_base = 0xAC00, l_base = 0x1100, v_base = 0x1161, t_base = 0x11A7, v_count = 21, t_count = 28,
                   s_count = 19 * v_count * t_count;

void decompose(std::u32string& out, char32_t c) {
  if (c < 0xC0) return out.push_back(c);
  if (c >= s_base && c < s_base + s_count) {
    const char32_t s = c - s_base;
    out += l_base + s / (v_count * t_count);
    out += v_base + s % (v_count * t_count) / t_count;
    if (s % t_count) out += t_base + s % t_count;
    return;
  }
  const Decomposition* d = find_char(decomposition_table, c);
  if (!d) return out.push_back(c);
  decompose(out, d->a);
  if (d->b) decompose(out, d->b);
}

char32_t compose(char32_t a, char32_t b) {
  if (a >= l_base && a < l_base + 19 && b >= v_base && b < v_base + v_count)
    return s_base + ((a - l_base) * v_count + (b - v_base)) * t_count;
  if (a >= s_base && a < s_base + s_count && (a - s_base) % t_count == 0 && b > t_base && b < t_base + t_count)
    return a + (b - t_base);
  static const auto pairs = [] {
    std::map<std::pair<char32_t, char32_t>, char32_t> m;
    for (const auto& d : decomposition_table)
      if (d.composes) m[{d.a, d.b}] = d.c;
    return m;
  }();
  const auto it = pairs.find({a, b});
  return it == pairs.end() ? 0 : it->second;
}

char32_t simple_lower(char32_t c) {
  if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 32 : c;
  const Lower* r = find_range(lower_table, c);
  return r && (c - r->first) % r->step == 0 ? char32_t(std::int64_t(c) + r->delta) : c;
}

bool final_sigma(std::u32string_view text, std::size_t at) {
  auto cased_next = [&](auto i, auto end) {
    while (i != end && find_range(ignorable_table, *i)) ++i;
    return i != end && find_range(cased_table, *i);
  };
  return cased_next(std::make_reverse_iterator(text.begin() + at), text.rend()) &&
         !cased_next(text.begin() + at + 1, text.end());
}

bool control(char32_t c) {
  return c <= 0x08 || c == 0x0B || (c >= 0x0E && c < 0x20) || c == 0x7F || (c >= 0x206A && c < 0x2070) || c == 0xFEFF ||
         (c >= 0xFFF9 && c < 0xFFFD);
}

// "&name;" and "&#123;" only: shorter forms are left to html_unescape.
std::u32string unescape_strict(std::u32string_view text) {
  std::u32string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '&') {
      std::string name = "&";
      std::size_t p = i + 1;
      if (p < text.size() && text[p] == '#') name += '#', ++p;
      const std::size_t start = p;
      auto alnum = [](char32_t c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
      };
      while (p < text.size() && alnum(text[p]) && p - start < 25) name += char(text[p++]);
      if (p > start && p - start <= 24 && p < text.size() && text[p] == ';') {
        name += ';';
        std::string value = html_unescape(name);
        if (value.find(';') != value.npos && name[1] != '#' && value == name) {  // "&EACUTE;"
          std::string small = name;
          for (char& c : small)
            if (c >= 'A' && c <= 'Z') c = char(c + 32);
          const bool capitals = std::none_of(name.begin(), name.end(), [](char c) { return c >= 'a' && c <= 'z'; });
          if (capitals) value = html_unescape(small);
          if (value == "ß") value = "ss";
        }
        if (value.find(';') == value.npos) {
          out += decode_utf8(value);
          i = p;
          continue;
        }
      }
    }
    out += text[i];
  }
  return out;
}

std::u32string replace_characters(std::u32string_view text) {
  std::u32string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char32_t c = text[i];
    if (c >= 0x80 && c < 0xA0) {
      out += decode_utf8(html_unescape("&#" + std::to_string(std::uint32_t(c)) + ";"));
    } else if (c >= 0x201C && c <= 0x201F) {
      out += U'"';
    } else if (c == 0x2BC || (c >= 0x2018 && c <= 0x201B)) {
      out += U'\'';
    } else if (c == '\r' || c == 0x2028 || c == 0x2029) {
      if (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n') ++i;
      out += U'\n';
    } else if (const Form* form = c < 0x132 ? nullptr : find_char(form_table, c)) {
      for (char32_t f : form->text) out += f == 0x2BC ? U'\'' : f;
    } else {
      out += c;
    }
  }
  return out;
}

std::u32string drop_escapes_and_controls(std::u32string_view text) {
  std::u32string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == 0x1B && i + 1 < text.size() && text[i + 1] == '[') {
      std::size_t p = i + 2;
      while (p < text.size() && ((text[p] >= '0' && text[p] <= '9') || text[p] == ';')) ++p;
      if (p < text.size() && ((text[p] >= 'a' && text[p] <= 'z') || (text[p] >= 'A' && text[p] <= 'Z'))) {
        i = p;
        continue;
      }
    }
    if (!control(text[i])) out += text[i];
  }
  return out;
}

}  // namespace

std::u32string lower(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == 0x130)
      out += U"i\u0307";
    else if (text[i] == 0x3A3)
      out += final_sigma(text, i) ? char32_t(0x3C2) : char32_t(0x3C3);
    else
      out += simple_lower(text[i]);
  }
  return out;
}

std::u32string nfc(std::u32string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char32_t c) { return c < 0x300; })) return std::u32string(text);
  std::u32string d;
  for (char32_t c : text) decompose(d, c);
  for (std::size_t i = 0; i < d.size();) {  // marks into canonical order
    std::size_t end = i;
    while (end < d.size() && combining_order(d[end])) ++end;
    std::stable_sort(d.begin() + i, d.begin() + end,
                     [](char32_t a, char32_t b) { return combining_order(a) < combining_order(b); });
    i = std::max(end, i + 1);
  }
  std::u32string out;
  std::size_t starter = std::u32string::npos;
  int last = -1;  // order of the last mark kept after the starter; -1: none
  for (char32_t c : d) {
    const int order = combining_order(c);
    if (starter != out.npos && last < order)
      if (const char32_t joined = compose(out[starter], c)) {
        out[starter] = joined;
        continue;
      }
    if (order == 0) {
      starter = out.size();
      last = -1;
    } else {
      last = order;
    }
    out += c;
  }
  return out;
}

bool is_space(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::u32string repair_text(std::u32string_view text) {
  std::u32string out;
  bool unescape = true;
  for (std::size_t pos = 0; pos < text.size();) {
    const std::size_t end = std::min(text.find(U'\n', pos), text.size() - 1) + 1;
    std::u32string line(text.substr(pos, end - pos));
    pos = end;
    if (line.find(U'<') != line.npos) unescape = false;
    for (std::u32string before; before != line;) {
      before = line;
      if (unescape) line = unescape_strict(line);
      line = nfc(drop_escapes_and_controls(replace_characters(line)));
    }
    out += line;
  }
  return out;
}

}  // namespace trireme

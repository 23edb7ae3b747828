#include "comm/nearest.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace trireme {
namespace {

constexpr std::size_t kLongest = 64;

// Case and the two dashes are not what makes a word another one.
std::string plain(std::string_view word) {
  std::string p(word);
  for (char& c : p) c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return p;
}

// Insertions, deletions, substitutions and swaps of neighbours.
std::size_t distance(std::string_view a, std::string_view b) {
  std::array<std::array<std::size_t, kLongest + 1>, kLongest + 1> d;
  for (std::size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (std::size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i)
    for (std::size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

}  // namespace

std::string nearest(std::string_view word, std::span<const std::string> candidates) {
  if (word.empty() || word.size() > kLongest) return "";
  const std::string from = plain(word);
  const std::size_t allowed = std::clamp<std::size_t>(word.size() / 3, 1, 3);
  std::size_t best = std::min(allowed + 1, word.size());  // a word of one letter is near nothing else
  std::string found;
  for (const std::string& c : candidates) {
    if (c.size() > kLongest) continue;
    if (const std::size_t d = distance(from, plain(c)); d < best) {
      best = d;
      found = c;
    }
  }
  return found;
}

}  // namespace trireme

#include "trainers/sample/sheet.h"

#include "data/image_text/resize.h"

#include <algorithm>
#include <cctype>
#include <map>

namespace trireme::sample {
namespace {

// Five rows of three dots, the upper left one first.
const std::map<char, const char*>& letters() {
  static const std::map<char, const char*> all = {
      {'A', ".x.x.xxxxx.xx.x"},  {'B', "xx.x.xxx.x.xxx."}, {'C', ".xxx..x..x...xx"}, {'D', "xx.x.xx.xx.xxx."},
      {'E', "xxxx..xx.x..xxx"},  {'F', "xxxx..xx.x..x.."}, {'G', ".xxx..x.xx.x.xx"}, {'H', "x.xx.xxxxx.xx.x"},
      {'I', "xxx.x..x..x.xxx"},  {'J', "..x..x..xx.x.x."}, {'K', "x.xx.xxx.x.xx.x"}, {'L', "x..x..x..x..xxx"},
      {'M', "x.xxxxxxxx.xx.x"},  {'N', "xx.x.xx.xx.xx.x"}, {'O', ".x.x.xx.xx.x.x."}, {'P', "xx.x.xxx.x..x.."},
      {'Q', ".x.x.xx.x.xx..x"},  {'R', "xx.x.xxx.x.xx.x"}, {'S', ".xxx...x...xxx."}, {'T', "xxx.x..x..x..x."},
      {'U', "x.xx.xx.xx.xxxx"},  {'V', "x.xx.xx.xx.x.x."}, {'W', "x.xx.xxxxxxxx.x"}, {'X', "x.xx.x.x.x.xx.x"},
      {'Y', "x.xx.x.x..x..x."},  {'Z', "xxx..x.x.x..xxx"}, {'0', "xxxx.xx.xx.xxxx"}, {'1', ".x.xx..x..x.xxx"},
      {'2', "xxx..xxxxx..xxx"},  {'3', "xxx..x.xx..xxxx"}, {'4', "x.xx.xxxx..x..x"}, {'5', "xxxx..xxx..xxx."},
      {'6', "xxxx..xxxx.xxxx"},  {'7', "xxx..x.x..x..x."}, {'8', "xxxx.xxxxx.xxxx"}, {'9', "xxxx.xxxx..xxxx"},
      {' ', "..............."},  {'.', ".............x."}, {',', "..........x.x.."}, {'-', "......xxx......"},
      {'+', "....x.xxx.x...."},  {':', "....x.....x...."}, {'/', "..x..x.x.x..x.."}, {'%', "x.x..x.x.x..x.x"},
      {'=', "...xxx...xxx..."},  {'(', "..x.x..x..x...x"}, {')', "x...x..x..x.x.."}, {'_', "............xxx"},
      {'\'', ".x..x.........."}, {'!', ".x..x..x.....x."}, {'?', "xxx..x.x.....x."}, {'*', "...x.x.x.x.x..."}};
  return all;
}

constexpr int advance = 4, line = 7;  // dots from a letter to the next, and from a line to the next

void paste(Image& on, const Image& what, int left, int top) {
  for (int y = 0; y < what.height; ++y)
    std::copy_n(&what.rgb[std::size_t(y) * std::size_t(what.width) * 3], std::size_t(what.width) * 3,
                &on.rgb[(std::size_t(top + y) * std::size_t(on.width) + std::size_t(left)) * 3]);
}

Image scaled(const Image& in, int side) {
  const double by = double(side) / std::max(in.width, in.height);
  const int width = std::max(1, int(in.width * by + 0.5)), height = std::max(1, int(in.height * by + 0.5));
  return resize(in, width, height, by > 1 ? Filter::bilinear : Filter::bicubic);
}

// In lines of at most `width` letters, at most `most` lines, broken between words where that can be.
std::vector<std::string> lines_of(const std::string& text, std::size_t width, std::size_t most) {
  std::vector<std::string> lines;
  std::size_t at = 0;
  while (at < text.size() && lines.size() < most) {
    std::size_t end = std::min(text.size(), text.find('\n', at));
    if (end - at > width) {
      const std::size_t space = text.rfind(' ', at + width);
      end = space != text.npos && space > at ? space : at + width;
    }
    lines.push_back(text.substr(at, end - at));
    at = end + (end < text.size() && (text[end] == ' ' || text[end] == '\n'));
  }
  return lines;
}

}  // namespace

void draw_text(Image& on, int x, int y, const std::string& text, int dot) {
  for (const char c : text) {
    const auto found = letters().find(char(std::toupper(static_cast<unsigned char>(c))));
    const char* dots = found == letters().end() ? "xxxx.xx.xx.xxxx" : found->second;
    for (int i = 0; i < 15 * dot * dot; ++i) {
      const int at = i / (dot * dot), px = x + at % 3 * dot + i % dot, py = y + at / 3 * dot + i / dot % dot;
      if (dots[at] == 'x' && px < on.width && py < on.height)
        std::fill_n(&on.rgb[(std::size_t(py) * std::size_t(on.width) + std::size_t(px)) * 3], 3, 32);
    }
    x += advance * dot;
  }
}

Image draw_sheet(const Sheet& s) {
  constexpr int gap = 6, dot = 2, heads = 4;
  std::size_t columns = 0;
  for (const auto& row : s.rows) columns = std::max(columns, row.pictures.size());
  std::size_t widest = 8;
  for (const auto& row : s.rows)
    for (const auto& l : lines_of(row.title, 24, 12)) widest = std::max(widest, l.size());
  const int left = int(widest) * advance * dot + 2 * gap, cell = s.side + gap, top = (2 + heads) * line * dot + 2 * gap;
  Image sheet{left + int(columns) * cell, top + int(s.rows.size()) * cell, {}};
  sheet.width = std::max(sheet.width, int(s.title.size()) * advance * dot + 2 * gap);
  sheet.rgb.assign(std::size_t(sheet.width) * std::size_t(sheet.height) * 3, 250);
  draw_text(sheet, gap, gap, s.title, dot);
  for (std::size_t c = 0; c < std::min(columns, s.columns.size()); ++c) {
    const auto words = lines_of(s.columns[c], std::size_t(s.side / (advance * dot)), heads);
    for (std::size_t i = 0; i < words.size(); ++i)
      draw_text(sheet, left + int(c) * cell, gap + (2 + int(i)) * line * dot, words[i], dot);
  }
  for (std::size_t r = 0; r < s.rows.size(); ++r) {
    const int y = top + int(r) * cell;
    const auto words = lines_of(s.rows[r].title, 24, std::size_t(s.side / (line * dot)));
    for (std::size_t i = 0; i < words.size(); ++i) draw_text(sheet, gap, y + int(i) * line * dot, words[i], dot);
    for (std::size_t c = 0; c < s.rows[r].pictures.size(); ++c)
      paste(sheet, scaled(s.rows[r].pictures[c], s.side), left + int(c) * cell, y);
  }
  return sheet;
}

}  // namespace trireme::sample

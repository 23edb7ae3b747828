#include "data/text/documents.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/gzip.h"
#include "data/text/arithmetic.h"
#include "data/text/lines.h"
#include "data/text/text.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

namespace trireme {
namespace {

constexpr std::int64_t max_package_file = std::int64_t(1) << 28, max_text = std::int64_t(16) << 30;

std::string package_file(const std::string& path, const std::string& package) {
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    throw DataError(path, "no such file", "apt-get install " + package + ", or name the place with --from");
  const auto bytes = read_file(path, max_package_file);
  if (bytes.size() > 2 && bytes[0] == 0x1f && bytes[1] == 0x8b) return gunzip(bytes, path, max_package_file);
  return std::string(bytes.begin(), bytes.end());
}

// A line of data.noun: offset, file, kind, number of words in hexadecimal, words with ids, pointers, and after a bar
// the gloss. Empty: no such line.
std::string synset(const std::string& line, const std::string& kind) {
  const auto bar = line.find(" | ");
  if (line.starts_with("  ") || bar == line.npos) return "";
  std::istringstream in(line.substr(0, bar));
  std::string skip, count, words;
  in >> skip >> skip >> skip >> count;
  const unsigned long n = std::strtoul(count.c_str(), nullptr, 16);
  for (unsigned long i = 0; i < n; ++i) {
    std::string word;
    if (!(in >> word >> skip)) return "";
    word = word.substr(0, word.find('('));  // where an adjective stands
    std::replace(word.begin(), word.end(), '_', ' ');
    words += (words.empty() ? "" : ", ") + word;
  }
  std::string gloss = line.substr(bar + 3);
  gloss.erase(gloss.find_last_not_of(" \r") + 1);
  return words + " (" + kind + "): " + gloss;
}

// dictd writes numbers in base 64, the highest digit first. -1: none.
std::int64_t base64_number(std::string_view digits) {
  constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::int64_t value = 0;
  for (char c : digits) {
    const auto d = alphabet.find(c);
    if (d == alphabet.npos || value > (std::int64_t(1) << 40)) return -1;
    value = value * 64 + std::int64_t(d);
  }
  return digits.empty() ? -1 : value;
}

// What lies between `open` and `close` goes, with both.
void erase_between(std::string& text, char open, char close) {
  for (std::size_t first; (first = text.find(open)) != text.npos;) {
    const std::size_t last = text.find(close, first + 1);
    if (last == text.npos) return;
    text.erase(first, last + 1 - first);
  }
}

std::string without_extra_spaces(const std::string& text) {
  std::istringstream in(text);
  std::string out, word;
  while (in >> word) out += (out.empty() || word == "," ? "" : " ") + word;
  return out;
}

// One entry: its lines joined up to the empty ones, pronunciations (\...\), braces and marks of sources ([...]) gone.
std::string gcide_entry(const std::string& entry) {
  std::string out, paragraph;
  const auto end_paragraph = [&] {
    erase_between(paragraph, '\\', '\\');
    erase_between(paragraph, '[', ']');
    std::erase_if(paragraph, [](char c) { return c == '{' || c == '}'; });
    const std::string plain = without_extra_spaces(paragraph);
    if (!plain.empty()) out += (out.empty() ? "" : "\n") + plain;
    paragraph.clear();
  };
  for (const std::string& line : lines_of(entry)) {
    if (line.find_first_not_of(' ') == line.npos) end_paragraph();
    paragraph += " " + line;
  }
  end_paragraph();
  return out;
}

}  // namespace

std::vector<std::string> wordnet_documents(const std::string& root) {
  constexpr const char* kinds[][2] = {{"noun", "noun"}, {"verb", "verb"}, {"adj", "adjective"}, {"adv", "adverb"}};
  std::vector<std::string> documents;
  for (const auto& [file, kind] : kinds) {
    const std::string path = root + "/data." + file;
    const std::size_t before = documents.size();
    for (const std::string& line : lines_of(package_file(path, "wordnet-base")))
      if (std::string text = synset(line, kind); !text.empty()) documents.push_back(std::move(text));
    if (documents.size() == before) throw DataError(path, "holds no sets of synonyms", "install wordnet-base again");
  }
  return documents;
}

std::vector<std::string> gcide_documents(const std::string& file) {
  const std::string text = package_file(file, "dict-gcide");
  const std::string index = file.substr(0, file.rfind(".dict")) + ".index";
  std::set<std::int64_t> seen;
  std::vector<std::string> documents;
  for (const std::string& line : lines_of(package_file(index, "dict-gcide"))) {
    const auto first = line.find('\t'), second = line.find('\t', first + 1);
    if (second == line.npos || line.starts_with("00")) continue;  // of the dictionary itself
    const std::int64_t at = base64_number(std::string_view(line).substr(first + 1, second - first - 1)),
                       bytes = base64_number(std::string_view(line).substr(second + 1));
    if (at < 0 || bytes < 0 || at + bytes > std::int64_t(text.size()))
      throw DataError(index, "points beyond " + file, "install dict-gcide again");
    if (!seen.insert(at).second) continue;
    if (std::string entry = gcide_entry(utf8_or_latin1(text.substr(at, bytes))); !entry.empty())
      documents.push_back(std::move(entry));
  }
  if (documents.empty()) throw DataError(index, "lists no entries", "install dict-gcide again");
  return documents;
}

std::vector<std::string> arithmetic_documents(std::int64_t problems, std::uint64_t seed) {
  std::vector<std::string> documents;
  for (std::int64_t i = 0; i < problems; ++i) {
    const auto p = arithmetic_problem(int(i % 3) + 1, seed, ArithmeticSplit::train, i / 3);
    documents.push_back(p.question + "\n" + p.answer);
  }
  return documents;
}

std::vector<std::string> text_documents(const std::string& file) {
  const auto bytes = read_file(file, max_text);
  const auto decoded = decode_text({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (!decoded) throw DataError(file, "is no text", "give UTF-8, UTF-16 with its mark, or Latin-1");
  std::vector<std::string> documents;
  std::string document;
  const auto end = [&] {
    if (!document.empty()) documents.push_back(std::move(document));
    document.clear();
  };
  for (const std::string& line : lines_of(decoded->text)) {
    if (line.find_first_not_of(" \t") == line.npos)
      end();
    else
      document += (document.empty() ? "" : "\n") + line;
  }
  end();
  if (documents.empty()) throw DataError(file, "holds no text", "check the file");
  return documents;
}

}  // namespace trireme

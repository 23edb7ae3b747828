#include "data/image_text/webdataset.h"

#include "comm/error.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <utility>

namespace trireme {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t max_shards = 1000000;

struct Name {
  std::string key, extension;
};

std::optional<Name> split_name(const std::string& name) {
  const auto slash = name.rfind('/');
  const std::size_t base = slash == name.npos ? 0 : slash + 1;
  const std::string first = name.substr(0, name.find('/'));
  if (first.size() >= 4 && first.starts_with("__") && first.ends_with("__")) return {};
  const auto dot = name.find('.', base);
  if (dot == name.npos || dot == base) return {};
  Name n{name.substr(0, dot), name.substr(dot + 1)};
  for (char& c : n.extension) c = char(std::tolower(static_cast<unsigned char>(c)));
  return n;
}

bool digits(std::string_view text) {
  return !text.empty() && text.size() <= 18 && text.find_first_not_of("0123456789") == text.npos;
}

// What stands between two braces: a range of numbers, or the words between its commas.
std::vector<std::string> alternatives(const std::string& inner) {
  const auto dots = inner.find("..");
  if (dots != inner.npos && digits(inner.substr(0, dots)) && digits(inner.substr(dots + 2))) {
    const std::string a = inner.substr(0, dots), b = inner.substr(dots + 2);
    const std::int64_t first = std::stoll(a), last = std::stoll(b);
    // Leading zeros of either end give all numbers one width, as in a shell.
    const bool padded = (a.size() > 1 && a[0] == '0') || (b.size() > 1 && b[0] == '0');
    const std::size_t width = padded ? std::max(a.size(), b.size()) : 0;
    if (std::uint64_t(std::abs(last - first)) >= max_shards) return {};
    std::vector<std::string> all;
    for (std::int64_t i = first;; i += first <= last ? 1 : -1) {
      const std::string number = std::to_string(i);
      all.push_back(std::string(width > number.size() ? width - number.size() : 0, '0') + number);
      if (i == last) return all;
    }
  }
  std::vector<std::string> all{""};
  int depth = 0;
  for (const char c : inner) {
    if (c == ',' && depth == 0) {
      all.emplace_back();
      continue;
    }
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    all.back() += c;
  }
  return all;
}

void expand(const std::string& text, const std::string& list, int groups, std::vector<std::string>& out) {
  const auto fail = [&](const char* what) { return DataError(list, what, "write it as shards/{00000..00041}.tar"); };
  const auto open = text.find('{');
  if (open == text.npos) {
    if (text.find('}') != text.npos) throw fail("has a closing brace without an opening one");
    if (out.size() >= max_shards) throw fail("names more than a million files");
    return out.push_back(text);
  }
  int depth = 0;
  std::size_t close = open;
  for (; close < text.size(); ++close) {
    depth += text[close] == '{' ? 1 : text[close] == '}' ? -1 : 0;
    if (depth == 0) break;
  }
  if (close == text.size()) throw fail("has an opening brace without a closing one");
  if (groups == 0) throw fail("has too many braces");
  const auto words = alternatives(text.substr(open + 1, close - open - 1));
  if (words.empty()) throw fail("names more than a million files");
  for (const auto& word : words) expand(text.substr(0, open) + word + text.substr(close + 1), list, groups - 1, out);
}

std::vector<std::string> tars_in(const std::string& folder) {
  std::vector<std::string> tars;
  std::error_code error;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    if (entry->path().extension() == ".tar") tars.push_back(entry->path().string());
  if (error) throw DataError(folder, "cannot be read: " + error.message(), "check the path");
  std::sort(tars.begin(), tars.end());
  if (tars.empty()) throw DataError(folder, "is a folder without .tar files", "name the folder of the shards");
  return tars;
}

}  // namespace

const TarMember* TarSample::find(std::initializer_list<std::string_view> extensions) const {
  for (const auto wanted : extensions)
    for (const auto& part : parts)
      if (part.extension == wanted) return &part.member;
  return nullptr;
}

std::optional<TarSample> TarSamples::next() {
  while (!error_) {
    std::optional<TarMember> member;
    try {
      member = walk_.next();
    } catch (...) {
      error_ = std::current_exception();
      break;
    }
    if (!member) return std::exchange(begun_, {});
    auto name = split_name(member->name);
    if (!name) continue;
    std::optional<TarSample> done;
    if (begun_ && begun_->key != name->key) done = std::exchange(begun_, {});
    if (!begun_) begun_ = TarSample{name->key, {}, false};
    if (begun_->find({name->extension}))
      begun_->repeated = true;
    else
      begun_->parts.push_back({std::move(name->extension), std::move(*member)});
    if (done) return done;
  }
  if (begun_) return std::exchange(begun_, {});
  std::rethrow_exception(error_);
}

bool names_tars(const std::string& list) {
  std::error_code error;
  if (list.ends_with(".tar") || list.find("::") != list.npos || list.find('{') != list.npos) return true;
  return fs::is_directory(list, error);
}

std::vector<std::string> list_tars(const std::string& list) {
  std::vector<std::string> tars;
  for (std::size_t begin = 0; begin <= list.size();) {
    const std::size_t end = std::min(list.find("::", begin), list.size());
    std::vector<std::string> names;
    expand(list.substr(begin, end - begin), list, 16, names);
    for (auto& name : names) {
      if (name.empty())
        throw DataError(list.empty() ? "data.file" : list, "names a tar without a name",
                        "name shards/{00000..00041}.tar, or several with `::` between them");
      std::error_code error;
      if (!fs::is_directory(name, error)) {
        tars.push_back(std::move(name));
        continue;
      }
      for (auto& tar : tars_in(name)) tars.push_back(std::move(tar));
    }
    begin = end + 2;
  }
  return tars;
}

}  // namespace trireme

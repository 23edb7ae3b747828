// Samples of a WebDataset: members of a tar that follow each other and share their name up to the first dot behind the
// last slash, as the Python package `webdataset` groups them. Hidden files and members named __x__ are passed over.
#pragma once
#include "data/image_text/tar.h"

#include <exception>
#include <initializer_list>
#include <string_view>

namespace trireme {

struct SamplePart {
  std::string extension;  // lower case, all behind the first dot: "jpg", "seg.png"
  TarMember member;
};

struct TarSample {
  std::string key;  // "dir/000001"
  std::vector<SamplePart> parts;
  bool repeated = false;  // an extension occurs twice: the first counts

  const TarMember* find(std::initializer_list<std::string_view> extensions) const;  // the first that is there, or null
  const TarMember* picture() const { return find({"jpg", "jpeg", "png", "webp"}); }
  const TarMember* text() const { return find({"txt", "caption", "text"}); }
};

class TarSamples {
 public:
  explicit TarSamples(const TarFile& file) : walk_(file) {}
  // None at the end. What is wrong with the tar is thrown behind the sample before it.
  std::optional<TarSample> next();
  std::string text(const TarMember& member) { return walk_.text(member); }
  bool is_tar() const { return walk_.is_tar(); }

 private:
  TarWalk walk_;
  std::optional<TarSample> begun_;
  std::exception_ptr error_;
};

// The tars that a list names: one file, a folder (its *.tar by name), brace lists (shards/{00000..00041}.tar,
// {a,b}.tar), several joined by `::`. DataError: an open brace, an empty name, more than a million.
std::vector<std::string> list_tars(const std::string& list);

// Is it such a list, by its form? (A folder is.)
bool names_tars(const std::string& list);

}  // namespace trireme

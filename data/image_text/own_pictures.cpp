#include "data/image_text/own_pictures.h"

#include "comm/error.h"
#include "data/image_text/caption_text.h"
#include "data/text/text.h"

#include <utility>

namespace trireme {
namespace {

namespace fs = std::filesystem;
bool below(const fs::path& root, const fs::path& p) {
  const auto relative = p.lexically_relative(root);
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

OwnPictures::OwnPictures(fs::path root) : root_(std::move(root)) {
  spec_.name = "folder";
  spec_.source = root_.string();
}

fs::path OwnPictures::inside(const fs::path& path, const std::string& place) const {
  const fs::path full = path.is_absolute() ? path : root_ / path;
  const std::string named = place == path.string() ? "" : "`" + path.string() + "` ";
  std::error_code error;
  const fs::path real = fs::weakly_canonical(full, error);
  if (error) throw DataError(place, named + "leads nowhere: " + error.message(), "check the path");
  if (!below(root_, real)) throw DataError(place, named + "leads out of " + root_.string(), "copy it into the folder");
  return real;
}

void OwnPictures::skip(const std::string& place, const std::string& why) {
  spec_.skipped.push_back(place + ": " + why);
}

void OwnPictures::add(const fs::path& picture, std::string_view caption, const std::string& place) {
  fs::path real;
  try {
    real = inside(picture, place);
  } catch (const DataError& e) {
    spec_.skipped.push_back(e.what());
    return;
  }
  const auto text = decode_text(caption);
  if (!text) return skip(place, "the caption is neither UTF-8 nor UTF-16 with a byte order mark: write it as UTF-8");
  bool cut = false;
  std::string clean = clean_caption(text->text, cut);
  if (clean.empty()) return skip(place, "no caption");
  if (text->encoding == Encoding::latin1) latin1_.add(place);
  if (text->encoding == Encoding::utf16) utf16_.add(place);
  if (cut) cut_.add(place);
  const fs::path lies = (root_ / picture).lexically_normal();  // an absolute path stays itself
  const std::string category =
      (below(root_, lies) ? lies : real).parent_path().lexically_relative(root_).generic_string();
  files_->push_back(real.string());
  spec_.items.push_back({real.string(), std::move(clean), category == "." ? "" : utf8_or_latin1(category)});
}

void OwnPictures::note(const Tally& tally, const std::string& what) {
  if (tally.count > 0)
    note(std::to_string(tally.count) + (tally.count == 1 ? " caption " : " captions ") + what + " (" +
         (tally.count == 1 ? "" : "the first: ") + tally.first + ")");
}

PrepareSpec OwnPictures::finish() {
  note(latin1_, "not UTF-8, read as Latin-1");
  note(utf16_, "read as UTF-16");
  note(cut_, "cut to " + std::to_string(max_caption_characters) + " characters");
  spec_.decode = [files = files_](std::size_t i) { return load_image((*files)[i]); };
  return std::move(spec_);
}

}  // namespace trireme

#include "data/image_text/folder.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/own_pictures.h"
#include "data/image_text/table.h"
#include "data/image_text/walk.h"
#include "data/image_text/webp.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <set>
#include <unordered_set>

namespace trireme {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t max_caption_file = 1 << 16;

std::string extension_of(const fs::path& p) {
  std::string e = p.extension().string();
  for (char& c : e) c = char(std::tolower(static_cast<unsigned char>(c)));
  return e;
}

bool is_foreign_picture(const std::string& extension) {
  static const std::set<std::string> known = {".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".jfif"};
  return known.contains(extension);
}

void add_picture(OwnPictures& pictures, const fs::path& picture, const fs::path& text) {
  std::error_code error;
  if (fs::symlink_status(text, error).type() == fs::file_type::not_found)
    return pictures.add(picture, "", picture.string());
  std::vector<std::uint8_t> caption;
  try {
    caption = read_file(pictures.inside(text, text.string()).string(), max_caption_file);
  } catch (const DataError& e) {
    pictures.skipped().push_back(e.what());
    return;
  }
  pictures.add(picture, {reinterpret_cast<const char*>(caption.data()), caption.size()}, text.string());
}

// A caption whose picture is a folder.
bool skip_folder(OwnPictures& pictures, const fs::path& text) {
  if (extension_of(text) != ".txt") return false;
  for (const char* extension : {".png", ".jpg", ".jpeg"}) {
    const fs::path picture = fs::path(text).replace_extension(extension);
    std::error_code error;
    if (!fs::is_directory(picture, error)) continue;
    pictures.skip(picture.string(), "a folder, not a picture");
    return true;
  }
  return false;
}

PrepareSpec from_folder(const fs::path& root) {
  OwnPictures pictures(root);
  const auto files = files_below(root, pictures.skipped());
  std::unordered_set<std::string> texts;
  for (const auto& file : files) {
    const std::string extension = extension_of(file);
    if (!is_picture(file) && !is_foreign_picture(extension)) continue;
    const fs::path text = fs::path(file).replace_extension(".txt");
    texts.insert(text.string());
    if (is_picture(file))
      add_picture(pictures, file, text);
    else
      pictures.skip(file, "a picture of another form; convert it to PNG or JPEG");
  }
  if (texts.empty())
    throw DataError(root.string(),
                    "no PNG or JPEG pictures" + (pictures.skipped().empty() ? "" : "; " + pictures.skipped().front()),
                    "put pictures there, each with a .txt caption beside it");
  std::vector<std::string> others;
  for (const auto& file : files)
    if (const auto e = extension_of(file);
        !is_picture(file) && !is_foreign_picture(e) && !texts.contains(file) && !skip_folder(pictures, file))
      others.push_back(file);
  if (!others.empty())
    pictures.note(std::to_string(others.size()) + (others.size() == 1 ? " other file (" : " other files (the first: ") +
                  others[0] + ")");
  return pictures.finish();
}

}  // namespace

bool is_picture(const std::string& file) {
  const std::string extension = extension_of(file);
  return extension == ".png" || extension == ".jpg" || extension == ".jpeg" ||
         (extension == ".webp" && build_reads_webp());
}

PrepareSpec folder_data(const std::string& from) {
  std::error_code error;
  const fs::path path = real_path(from);
  if (!fs::exists(path, error)) throw DataError(from, "no such folder or table", "check --from");
  PrepareSpec spec = fs::is_directory(path, error) ? from_folder(path) : table_data(from);
  spec.source = path.string();
  return spec;
}

}  // namespace trireme

#include "data/image_text/openclipart.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/captions.h"
#include "data/image_text/svg_metadata.h"
#include "data/image_text/walk.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <tuple>

namespace trireme {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t max_svg_bytes = 1 << 26;

struct Source {
  std::string file, folder;  // below png/
  CaptionSource caption;
};

std::vector<std::string> split_path(const fs::path& p) {
  std::vector<std::string> out;
  for (const auto& part : p) out.push_back(part.string());
  return out;
}

// Title, keywords and authors, where there is an SVG of the same name.
void read_svg(const fs::path& svg, CaptionSource& caption, std::vector<std::string>& notes) {
  std::error_code error;
  if (!fs::exists(svg, error)) return;
  try {
    const auto bytes = read_file(svg.string(), max_svg_bytes);
    auto meta = read_svg_metadata({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    caption.title = std::move(meta.title);
    caption.keywords = std::move(meta.keywords);
    caption.agents = std::move(meta.agents);
  } catch (const DataError& e) {
    notes.push_back(std::string("captioned from its file name: ") + e.what());
  }
}

std::vector<Source> list(const fs::path& root, PrepareSpec& spec) {
  std::vector<Source> sources;
  for (const auto& file : files_below(root / "png", spec.skipped)) {
    const fs::path path = file;
    if (path.extension() != ".png") continue;
    const fs::path relative = path.lexically_relative(root / "png");
    Source s;
    s.file = file;
    s.folder = relative.parent_path().string();
    s.caption.stem = relative.stem().string();
    s.caption.folders = split_path(relative.parent_path());
    read_svg((root / "svg" / relative).replace_extension(".svg"), s.caption, spec.notes);
    sources.push_back(std::move(s));
  }
  // Of equal pictures the first stays: sorted folders before `unsorted`.
  std::sort(sources.begin(), sources.end(), [](const Source& a, const Source& b) {
    return std::tuple(a.folder.starts_with("unsorted"), a.file) < std::tuple(b.folder.starts_with("unsorted"), b.file);
  });
  return sources;
}

}  // namespace

PrepareSpec openclipart(const std::string& root) {
  for (const char* part : {"png", "svg"})
    if (!fs::is_directory(fs::path(root) / part))
      throw DataError(root + "/" + part, "folder not found", "apt-get install openclipart-png openclipart-svg");
  PrepareSpec spec;
  std::vector<Source> sources = list(root, spec);
  std::vector<CaptionSource> captions;
  for (const auto& s : sources) captions.push_back(s.caption);
  const CaptionMaker caption(captions);

  spec.name = "openclipart";
  spec.source = real_path(root);
  auto files = std::make_shared<std::vector<std::string>>();
  for (auto& s : sources) {
    std::string text = caption(s.caption);
    if (text.empty()) {
      spec.skipped.push_back(s.file + ": no caption");
      continue;
    }
    spec.items.push_back({s.file, std::move(text), s.folder});
    files->push_back(s.file);
  }
  spec.decode = [files](std::size_t i) { return load_image((*files)[i]); };
  return spec;
}

}  // namespace trireme

// The data set `openclipart`: Debian's openclipart-png pictures, captions from openclipart-svg metadata.
#pragma once
#include "data/image_text/prepared.h"

#include <string>

namespace trireme {

inline constexpr const char* openclipart_root = "/usr/share/openclipart";

// `root` holds png/ and svg/ (default: where the packages put them). Missing: DataError with the apt-get
// line. Pictures without a caption, and folders that cannot be read, are skipped and named; a picture whose SVG cannot
// be read is named in the notes and captioned from its file name.
PrepareSpec openclipart(const std::string& root = openclipart_root);

}  // namespace trireme

// The data set `openclipart`: Debian's openclipart-png pictures, captions from openclipart-svg metadata.
#pragma once
#include "data/image_text/prepared.h"

#include <string>

namespace trireme {

// `root` holds png/ and svg/ (default: where the packages put them). Missing: DataError with the apt-get
// line.
PrepareSpec openclipart(const std::string& root = "/usr/share/openclipart");

}  // namespace trireme

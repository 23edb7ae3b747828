// The user's own pictures: a folder with a caption file beside each picture (x.jpg, x.txt), or a table
// (data/image_text/table.h).
#pragma once
#include "data/image_text/prepared.h"

#include <string>

namespace trireme {

// The class of a picture is the folder it lies in, relative to `from`. Pictures and captions must lie below the folder
// (below the table's folder). What cannot be used is skipped and named, one line each: links that lead out or in a
// circle, linked folders, folders and captions that cannot be read, overlong captions, captions that are no text,
// pictures without a caption, rows that do not fit the header. DataError: nothing is there, or no picture at all.
PrepareSpec folder_data(const std::string& from);

// By its name, a picture that this build reads: .png, .jpg, .jpeg, and .webp with libwebp; in any case.
bool is_picture(const std::string& file);

}  // namespace trireme

// libFuzzer entry for the walker over tars and what is read from their members, built by hand:
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/tar_fuzz.cpp data/file.cpp \
//     data/image_text/{tar,tar_index,tar_index_file,webdataset,broken_samples,caption_text,content_hash}.cpp \
//     data/text/{text,unicode}.cpp comm/error.cpp -o tar_fuzz && XDG_CACHE_HOME=/nowhere ./tar_fuzz -max_len=32768 \
//     tests/reference/webdataset
// Whatever the bytes: an index whose rows lie within the file, or a data error of one line.
#include "comm/error.h"
#include "data/image_text/tar_index.h"
#include "data/image_text/webdataset.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <unistd.h>

#include <sys/mman.h>

namespace {

void check(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int fd = memfd_create("fuzz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  check(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == ssize_t(size), "no memory file");
  for (const bool need_caption : {true, false}) try {
      trireme::TarIndexOptions options;
      options.need_caption = need_caption;
      options.index_key = need_caption ? "" : "key";
      options.threads = 1;
      const trireme::TarIndex index({path}, options);
      for (const auto& row : index.rows()) {
        check(row.picture_bytes > 0, "an empty picture");
        check(std::size_t(row.picture_block) * 512 + row.picture_bytes <= size, "a picture beyond the end");
        const std::size_t text = row.text_bytes & ~trireme::TarRow::json;
        check(text == 0 || std::size_t(row.text_block) * 512 + text <= size, "a text beyond the end");
        check(row.caption < index.rows().size(), "a caption that is no row");
      }
    } catch (const trireme::DataError& e) {
      check(std::strchr(e.what(), '\n') == nullptr, "an error of two lines");
    }
  return 0;
}

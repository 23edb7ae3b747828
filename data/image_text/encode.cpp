#include "data/image_text/encode.h"

#include "comm/error.h"

#include <memory>
#include <new>

#ifdef TRIREME_HAS_TURBOJPEG
#include <turbojpeg.h>
#endif

namespace trireme {

std::vector<std::uint8_t> encode_jpeg(const Image& image, int quality) {
#ifdef TRIREME_HAS_TURBOJPEG
  thread_local const std::unique_ptr<void, int (*)(tjhandle)> tj(tjInitCompress(), tjDestroy);
  if (!tj) throw std::bad_alloc();
  std::vector<std::uint8_t> out(tjBufSize(image.width, image.height, TJSAMP_420));
  unsigned char* to = out.data();
  unsigned long bytes = out.size();
  if (tjCompress2(tj.get(), image.rgb.data(), image.width, 0, image.height, TJPF_RGB, &to, &bytes, TJSAMP_420, quality,
                  TJFLAG_NOREALLOC) != 0)
    throw DataError("JPEG", tjGetErrorStr2(tj.get()));
  out.resize(bytes);
  return out;
#else
  throw DataError("JPEG", "this build writes none", "install libturbojpeg0-dev and build again");
#endif
}

}  // namespace trireme

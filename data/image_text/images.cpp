#include "data/image_text/images.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/resize.h"
#include "data/image_text/webp.h"

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#ifdef TRIREME_HAS_PNG
#include <png.h>
#endif
#ifdef TRIREME_HAS_TURBOJPEG
#include <turbojpeg.h>
#endif

namespace trireme {
namespace {

constexpr std::string_view cure = "remove the file or replace it by a readable PNG or JPEG";

void check_size(std::int64_t width, std::int64_t height, std::string_view name, const ImageLimits& limits) {
  if (width <= 0 || height <= 0) throw BrokenPicture(name, "image without pixels", cure);
  if (width > limits.max_pixels / height)
    throw BrokenPicture(name,
                        "image of " + std::to_string(width) + " x " + std::to_string(height) +
                            " pixels is above the limit of " + std::to_string(limits.max_pixels),
                        "make it smaller");
}

#ifdef TRIREME_HAS_PNG
// Everything that libpng's longjmp could skip over lives here, outside the frame that calls setjmp.
struct PngReader {
  std::span<const std::uint8_t> bytes;
  std::size_t used = 0;
  const ImageLimits* limits = nullptr;
  png_structp png = nullptr;
  png_infop info = nullptr;
  int width = 0, height = 0;
  std::vector<std::uint8_t> rgba;
  std::vector<png_bytep> rows;
  char message[128] = "";
  bool too_large = false;
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void png_failed(png_structp png, png_const_charp message) {
  auto* r = static_cast<PngReader*>(png_get_error_ptr(png));
  std::strncpy(r->message, message, sizeof r->message - 1);
  png_longjmp(png, 1);
}

void png_warned(png_structp, png_const_charp) {}

void png_pull(png_structp png, png_bytep out, png_size_t n) {
  auto* r = static_cast<PngReader*>(png_get_io_ptr(png));
  if (n > r->bytes.size() - r->used) png_error(png, "file ends too early");
  std::memcpy(out, r->bytes.data() + r->used, n);
  r->used += n;
}

// No object with a destructor may be created here: an error jumps back over this frame.
bool png_header(PngReader& r) {
  if (setjmp(png_jmpbuf(r.png))) return false;
  png_set_read_fn(r.png, &r, png_pull);
  png_set_user_limits(r.png, 1 << 20, 1 << 20);
  png_set_chunk_malloc_max(r.png, 1 << 24);
  png_set_chunk_cache_max(r.png, 128);
  png_read_info(r.png, r.info);
  r.width = int(png_get_image_width(r.png, r.info));
  r.height = int(png_get_image_height(r.png, r.info));
  return true;
}

bool png_pixels(PngReader& r) {
  if (setjmp(png_jmpbuf(r.png))) return false;
  png_set_expand(r.png);  // palette to RGB, grey below 8 bits to 8, tRNS to alpha
  png_set_scale_16(r.png);
  png_set_gray_to_rgb(r.png);
  png_set_add_alpha(r.png, 0xff, PNG_FILLER_AFTER);
  png_set_interlace_handling(r.png);
  png_read_update_info(r.png, r.info);
  if (png_get_rowbytes(r.png, r.info) != std::size_t(r.width) * 4) png_error(r.png, "unexpected pixel format");
  png_read_image(r.png, r.rows.data());
  png_read_end(r.png, nullptr);
  return true;
}

Image decode_png(std::span<const std::uint8_t> bytes, std::string_view name, const ImageLimits& limits) {
  PngReader r;
  r.bytes = bytes;
  r.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &r, png_failed, png_warned);
  if (!r.png) throw std::bad_alloc();
  r.info = png_create_info_struct(r.png);
  if (!r.info) throw std::bad_alloc();
  if (!png_header(r)) throw BrokenPicture(name, std::string("corrupt PNG: ") + r.message, cure);
  check_size(r.width, r.height, name, limits);
  r.rgba.resize(std::size_t(r.width) * r.height * 4);
  for (int y = 0; y < r.height; ++y) r.rows.push_back(r.rgba.data() + std::size_t(y) * r.width * 4);
  if (!png_pixels(r)) throw BrokenPicture(name, std::string("corrupt PNG: ") + r.message, cure);
  return over_white(std::move(r.rgba), r.width, r.height);
}
#endif

#ifdef TRIREME_HAS_TURBOJPEG
// A thread keeps its own: making one allocates half a megabyte.
tjhandle decompressor() {
  thread_local const std::unique_ptr<void, int (*)(tjhandle)> tj(tjInitDecompress(), tjDestroy);
  if (!tj) throw std::bad_alloc();
  return tj.get();
}

Picture decode_jpeg(std::span<const std::uint8_t> bytes, std::string_view name, const ImageLimits& limits,
                    const Shrink& shrink) {
  const tjhandle tj = decompressor();
  auto failed = [&] { return BrokenPicture(name, std::string("corrupt JPEG: ") + tjGetErrorStr2(tj), cure); };
  int width = 0, height = 0, subsampling = 0, space = 0;
  if (tjDecompressHeader3(tj, bytes.data(), bytes.size(), &width, &height, &subsampling, &space) != 0) throw failed();
  check_size(width, height, name, limits);

  const double least = shrink ? shrink(width, height) : 1;
  int eighths = 8;
  while (eighths > 1 && double(eighths) / 16 >= least) eighths /= 2;
  const int w = TJSCALED(width, (tjscalingfactor{eighths, 8})), h = TJSCALED(height, (tjscalingfactor{eighths, 8}));

  const bool cmyk = space == TJCS_CMYK || space == TJCS_YCCK;
  int flags = TJFLAG_STOPONWARNING;  // a truncated file is only a warning there
  if (eighths < 8) flags |= TJFLAG_FASTUPSAMPLE | TJFLAG_FASTDCT;
#ifdef TJFLAG_LIMITSCANS
  flags |= TJFLAG_LIMITSCANS;
#endif
  Picture out{width, height, {w, h, std::vector<std::uint8_t>(std::size_t(w) * h * (cmyk ? 4 : 3))}};
  std::vector<std::uint8_t>& pixels = out.pixels.rgb;
  if (tjDecompress2(tj, bytes.data(), bytes.size(), pixels.data(), w, 0, h, cmyk ? TJPF_CMYK : TJPF_RGB, flags) != 0)
    throw failed();
  if (cmyk) {  // stored inverted by every writer in use
    std::vector<std::uint8_t> rgb(std::size_t(w) * h * 3);
    for (std::size_t i = 0; i < std::size_t(w) * h; ++i)
      for (int c = 0; c < 3; ++c) rgb[3 * i + c] = std::uint8_t(pixels[4 * i + c] * pixels[4 * i + 3] / 255);
    pixels = std::move(rgb);
  }
  return out;
}
#endif

}  // namespace

Image over_white(std::vector<std::uint8_t> rgba, int width, int height) {
  std::uint8_t* out = rgba.data();  // packed in place: the write position never passes the read position
  for (const std::uint8_t* p = rgba.data(); p != rgba.data() + std::size_t(width) * height * 4; p += 4) {
    const int a = p[3], r = p[0], g = p[1], b = p[2];
    for (int v : {r, g, b}) *out++ = std::uint8_t((v * a + 255 * (255 - a) + 127) / 255);
  }
  rgba.resize(std::size_t(width) * height * 3);
  return {width, height, std::move(rgba)};
}

Picture decode_picture(std::span<const std::uint8_t> bytes, std::string_view name, const ImageLimits& limits,
                       const Shrink& shrink) {
  static constexpr std::uint8_t png[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  if (bytes.size() >= sizeof png && std::equal(png, png + sizeof png, bytes.begin())) {
#ifdef TRIREME_HAS_PNG
    Image image = decode_png(bytes, name, limits);
    return {image.width, image.height, std::move(image)};
#else
    throw DataError(name, "this build reads no PNG", "install libpng-dev and build again");
#endif
  }
  if (bytes.size() >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff) {
#ifdef TRIREME_HAS_TURBOJPEG
    return decode_jpeg(bytes, name, limits, shrink);
#else
    throw DataError(name, "this build reads no JPEG", "install libturbojpeg0-dev and build again");
#endif
  }
  if (is_webp(bytes)) {
    Image image = decode_webp(bytes, name, limits);
    return {image.width, image.height, std::move(image)};
  }
  throw BrokenPicture(name, bytes.empty() ? "empty file" : "neither a PNG nor a JPEG", cure);
}

Image decode_image(std::span<const std::uint8_t> bytes, std::string_view name, const ImageLimits& limits) {
  return decode_picture(bytes, name, limits).pixels;
}

Image load_image(const std::string& path, const ImageLimits& limits) {
  return decode_image(read_file(path, limits.max_file_bytes), path, limits);
}

std::vector<std::uint8_t> fit_square(const Image& in, int size) {
  const int longer = std::max(in.width, in.height);
  auto side = [&](int s) { return std::clamp(int(std::lround(double(s) * size / longer)), 1, size); };
  const Image small = resize(in, side(in.width), side(in.height));
  const int left = (size - small.width) / 2, top = (size - small.height) / 2;
  std::vector<std::uint8_t> planes(std::size_t(3) * size * size, 255);
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < small.height; ++y)
      for (int x = 0; x < small.width; ++x)
        planes[(std::size_t(c) * size + top + y) * size + left + x] =
            small.rgb[(std::size_t(y) * small.width + x) * 3 + c];
  return planes;
}

}  // namespace trireme

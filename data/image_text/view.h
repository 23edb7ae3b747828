// Which part of a picture is seen: the random crop of training, and the one that evaluation takes.
#pragma once
#include "data/image_text/crop.h"
#include "data/image_text/images.h"
#include "data/rng.h"

namespace trireme {

// In pixels of the size on record.
struct View {
  double left = 0, top = 0, width = 0, height = 0;
  bool mirror = false;
  bool cut = false;         // nothing beyond the box is seen, as where a crop comes before the resize
  bool down_first = false;  // by the sizes of what Pillow would resize: the box, or where it is not cut the picture
};

// torchvision's RandomResizedCrop: the area uniform in [scale, 1], the aspect ratio log-uniform in [3/4, 4/3]; ten
// tries, then the largest centred box of such a ratio. scale 1: no crop, as in evaluation. `flip`: chance of a mirror
// image.
View random_view(Rng rng, int width, int height, int size, double scale, double flip);

// open_clip's transform for evaluation: the shorter side becomes `size`, then the middle square.
View middle_view(int width, int height, int size);

// The least factor at which both sides of the box still have `size` pixels.
double least_factor(const View& view, int size);

// What crop_resize takes of the decoded picture: width, height, pitch and box of the region that begins at pixel
// (x, y) of `picture.pixels`; the pitch is the picture's.
struct Cut {
  Crop crop;
  int x = 0, y = 0;
};
Cut cut(const View& view, const Picture& picture, int size);

}  // namespace trireme

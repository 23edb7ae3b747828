"""Writes tests/reference/crop_cases.json: crops by Pillow and torchvision of pictures made by a formula.

Each case: size of the picture, `box` [left, top, width, height] (crop first, as torchvision's resized_crop) or null
(open_clip's transform for evaluation: the shorter side resized, then the middle square), `mirror`, output side `size`,
and the levels [size, size, 3] in hex. Then boxes that torchvision's RandomResizedCrop falls back on.
`resizes`: whole pictures to width x height by Pillow, bicubic or bilinear.
Usage: python3 crop_cases.py OUT.json (needs pillow >= 13, whose passes change places for some shapes; torch, torchvision)
"""
import json, sys
import numpy as np
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms.functional import resized_crop


def picture(width, height):
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    x, y, c = (a.astype(np.uint32) for a in (x, y, c))
    noise = ((x * 7919 + y * 104729 + c * 1299709) * np.uint32(2654435761)) >> np.uint32(24)
    smooth = (x * (3 + c) + y * (5 - c)) & np.uint32(255)
    return Image.fromarray(np.where((x // 8 + y // 8) % 2 == 0, noise, smooth).astype(np.uint8))


CASES = [
    (61, 47, [3, 5, 40, 37], False, 24), (61, 47, [3, 5, 40, 37], True, 24), (61, 47, [0, 0, 61, 47], False, 24),
    (61, 47, [21, 7, 40, 40], False, 24), (24, 24, [0, 0, 24, 24], False, 24), (24, 24, [0, 0, 24, 24], True, 24),
    (30, 40, [30 - 9, 40 - 7, 9, 7], False, 24), (1, 1, [0, 0, 1, 1], False, 24), (40, 30, [17, 11, 1, 1], True, 24),
    (1, 90, [0, 0, 1, 90], False, 24), (70, 2, [5, 0, 60, 2], False, 24), (300, 200, [0, 0, 300, 200], False, 24),
    (300, 200, [11, 13, 239, 180], True, 24), (50, 50, [1, 2, 45, 48], False, 33), (50, 50, [1, 2, 45, 48], False, 1),
    (61, 47, None, False, 24), (47, 61, None, False, 24), (24, 100, None, False, 24), (33, 24, None, False, 24),
    (200, 90, None, False, 24), (13, 17, None, False, 24), (31, 31, None, False, 24), (7, 7, None, False, 24),
    (21, 53, None, False, 16), (53, 21, None, False, 16), (30, 40, [0, 0, 30, 40], False, 24), (40, 100, [2, 3, 30, 90], True, 19),
    (100, 40, [3, 2, 90, 30], True, 19), (40, 70, [1, 2, 37, 65], False, 17), (26, 31, None, False, 23),
]  # fmt: skip

cases = []
for width, height, box, mirror, size in CASES:
    image = picture(width, height)
    if box:
        out = resized_crop(image, box[1], box[0], box[3], box[2], [size, size], InterpolationMode.BICUBIC, antialias=True)
    else:
        out = CenterCrop(size)(Resize(size, InterpolationMode.BICUBIC, antialias=True)(image))
    if mirror:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    levels = np.asarray(out)
    assert levels.shape == (size, size, 3)
    cases.append({"width": width, "height": height, "box": box, "mirror": mirror, "size": size, "levels": levels.tobytes().hex()})

resizes = []
for width, height, w, h in [(21, 53, 16, 20), (53, 21, 16, 20), (90, 30, 20, 25), (30, 90, 33, 20), (37, 41, 37, 20), (37, 41, 18, 41),
                            (20, 20, 41, 30), (64, 64, 48, 32), (64, 64, 49, 32), (1, 50, 3, 7), (50, 1, 7, 3)]:
    for name in ["BICUBIC", "BILINEAR"]:
        levels = np.asarray(picture(width, height).resize((w, h), Image.Resampling[name]))
        resizes.append({"in": [width, height], "out": [w, h], "filter": name.lower(), "levels": levels.tobytes().hex()})

fallbacks = []
for width, height in [(200, 10), (10, 200), (101, 10), (10, 101), (1, 50)]:
    top, left, h, w = RandomResizedCrop.get_params(Image.new("RGB", (width, height)), (0.9, 1.0), (3 / 4, 4 / 3))
    fallbacks.append({"width": width, "height": height, "box": [left, top, w, h]})
with open(sys.argv[1], "w") as f:
    json.dump({"crops": cases, "resizes": resizes, "fallbacks": fallbacks}, f, separators=(",", ":"))

#!/usr/bin/env python3
"""Labels of scikit-image's quickshift for tests/unit/sdit_test.cpp.

usage: quickshift_vectors.py OUT.safetensors [rows columns channels seed]

Writes images imageI [channels, rows, columns] f64 and, for every case k: settingsK f64 [I, ratio, kernel_size,
max_dist], noiseK [rows, columns] f64 (the unit normals with which quickshift broke ties), labelsK [rows, columns] i32. Needs scikit-image
0.26 and safetensors.
"""
import sys

import numpy as np
from safetensors.numpy import save_file
from skimage.segmentation import quickshift


def scene(rng, rows, columns, channels, noise):
    """Smooth blobs on a step, and noise."""
    y, x = np.mgrid[0:rows, 0:columns]
    image = np.empty((rows, columns, channels))
    for c in range(channels):
        cy, cx, w = rng.uniform(0, rows), rng.uniform(0, columns), rng.uniform(3, 9)
        image[..., c] = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * w * w)) + 0.5 * (x > rng.uniform(0, columns)) - 0.5
    return image + noise * rng.standard_normal(image.shape)


def main():
    out = sys.argv[1]
    rows, columns, channels, seed = (int(a) for a in sys.argv[2:6]) if len(sys.argv) > 5 else (23, 18, 4, 1)
    rng = np.random.default_rng(seed)
    images = [scene(rng, rows, columns, channels, 0), scene(rng, rows, columns, channels, 0.3),
              np.zeros((rows, columns, channels))]
    arrays = {f"image{i}": np.ascontiguousarray(image.transpose(2, 0, 1)) for i, image in enumerate(images)}
    settings = (1, 3, 6), (10, 3, 6), (20, 3, 6), (8, 2, 4), (5, 1.3, 3.5), (4, 5, 10)
    cases = [(i, *s) for i in (0, 1) for s in settings] + [(2, 1, 2, 5)]
    for k, (i, ratio, kernel_size, max_dist) in enumerate(cases):
        labels = quickshift(images[i], ratio=ratio, kernel_size=kernel_size, max_dist=max_dist, convert2lab=False, rng=k)
        arrays[f"noise{k}"] = np.random.default_rng(k).standard_normal((rows, columns))
        arrays[f"labels{k}"] = labels.astype(np.int32)
        arrays[f"settings{k}"] = np.array([i, ratio, kernel_size, max_dist], dtype=np.float64)
        print(k, i, ratio, kernel_size, max_dist, labels.max() + 1, "segments")
    save_file(arrays, out)


if __name__ == "__main__":
    main()

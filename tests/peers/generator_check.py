#!/usr/bin/env python3
"""Rows that a model trained on criteo_like looks up, beside a dump of a real one: distinct rows, entropy of the codes, and the
share of rows that stood within the 32 before them.

  trireme dlrm analyze RUN --rows 128 --batches 8 --dump rows
  python3 tests/peers/generator_check.py REAL.f32 128x32 rows/table_5_batch_*.f32     # or - in place of REAL.f32
"""
import sys

import numpy as np


def figures(rows, bound):
    codes = np.rint(rows / (2 * bound * (rows.max() - rows.min()))).astype(np.int32)
    shares = np.unique(codes, return_counts=True)[1] / codes.size
    keys = [row.tobytes() for row in codes]
    hits = sum(key in keys[max(0, i - 32):i] for i, key in enumerate(keys)) / len(keys)
    return len(np.unique(rows, axis=0)), -(shares * np.log2(shares)).sum(), hits


def main():
    shape = tuple(int(n) for n in sys.argv[2].split("x"))
    ours = [np.fromfile(f, np.float32).reshape(shape) for f in sys.argv[3:]]
    if sys.argv[1] == "-":
        for bound in (0.01, 0.03, 0.05):
            print(f"{bound}: " + ", ".join(f"{x:.4g}" for x in np.mean([figures(rows, bound) for rows in ours], axis=0)))
        return
    real = np.fromfile(sys.argv[1], np.float32).reshape(shape)
    print("bound: distinct rows, bits a value, window hits: real | generated and trained (mean) | ratio")
    for bound in (0.01, 0.03, 0.05):
        a, b = figures(real, bound), np.mean([figures(rows, bound) for rows in ours], axis=0)
        cells = [f"{x:.4g} | {y:.4g} | {y / x:.3f}" for x, y in zip(a, b)]
        print(f"{bound}: " + ";  ".join(cells))


main()

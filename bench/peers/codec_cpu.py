#!/usr/bin/env python3
"""The error-bounded codec beside zstd, zfp and SZ3 on one core: ratio, GB/s of float input both ways, largest error.

  pip install numpy zstandard zfpy pysz
  bench/peers/codec_cpu.py LIBRARY [--dumps DIR] [--json FILE] [--svg FILE] [--blocks 9]

LIBRARY: libtrireme_codec.so. DIR: terabyte_table1_2048x64.f32 and kaggle_table5_128x32.f32, which are not ours to pass
on. Every arm gets the same relative bound and finds max - min itself, codes each chunk alone, and is timed in CPU
seconds of this process, pinned to one core; arms take turns, the median of the blocks counts.
"""
import argparse
import ctypes as c
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[threads] = "1"
import numpy as np

BOUNDS = (0.01, 0.03, 0.05)
OURS = ("auto", "smallest", "dedup_huffman", "rans", "huffman", "vector_lz", "dedup_packed", "dedup_sparse", "packed")


# ---- ours, over the C API

class Place(c.Structure):
    _fields_ = [("device", c.c_int), ("stream", c.c_void_p)]


class Rows(c.Structure):
    _fields_ = [("rows", c.c_void_p), ("n", c.c_size_t), ("dim", c.c_size_t), ("stride", c.c_size_t),
                ("bound", c.c_float), ("scope", c.c_uint32)]


class Code(c.Structure):
    _fields_ = [("code", c.c_void_p), ("bytes", c.c_size_t), ("rows", c.c_void_p), ("n", c.c_size_t),
                ("dim", c.c_size_t), ("stride", c.c_size_t)]


HOST = Place(-1, None)


class Ours:
    def __init__(self, library, name):
        self.library, self.codec = library, c.c_void_p()
        self.check(library.trireme_codec_create(name.encode(), 1, 0, c.byref(self.codec)))

    def check(self, code):
        if code:
            sys.exit(self.library.trireme_codec_message().decode())

    def prepare(self, chunks, bound):
        n = len(chunks)
        self.rows = (Rows * n)(*[Rows(x.ctypes.data, x.shape[0], x.shape[1], 0, bound, k)
                                 for k, x in enumerate(chunks)])
        room, scratch = c.c_size_t(), c.c_size_t()
        self.check(self.library.trireme_codec_encode_size(self.codec, self.rows, c.c_size_t(n), HOST, c.byref(room),
                                                          c.byref(scratch)))
        self.out, self.sizes = np.empty(room.value, np.uint8), np.empty(n, np.uint64)
        self.back = [np.empty_like(x) for x in chunks]

    def encode(self):
        self.check(self.library.trireme_codec_encode(
            self.codec, self.rows, c.c_size_t(len(self.rows)), HOST, c.c_void_p(self.out.ctypes.data),
            c.c_size_t(self.out.size), c.c_void_p(self.sizes.ctypes.data), None, c.c_size_t(0)))
        return int(self.sizes.sum())

    def decode(self):
        at, codes = self.out.ctypes.data, []
        for x, size in zip(self.back, self.sizes.tolist()):
            codes.append(Code(at, size, x.ctypes.data, x.shape[0], x.shape[1], 0))
            at += size
        self.check(self.library.trireme_codec_decode(self.codec, (Code * len(codes))(*codes), c.c_size_t(len(codes)),
                                                     HOST, None, None, c.c_size_t(0)))
        return self.back


# ---- peers: chunk by chunk, one call each

class Each:
    def prepare(self, chunks, bound):
        self.chunks, self.bound = chunks, bound

    def encode(self):
        self.codes = [self.one(x) for x in self.chunks]
        return sum(len(code) for code in self.codes)

    def decode(self):
        return [self.back(code, x.shape) for code, x in zip(self.codes, self.chunks)]

    def eb(self, x):
        return self.bound * float(x.max() - x.min())


class Zstd(Each):
    """Of the values as they are, or of codes that numpy rounded to bytes."""

    def __init__(self, level, quantised):
        import zstandard
        self.to, self.fro, self.quantised = zstandard.ZstdCompressor(level), zstandard.ZstdDecompressor(), quantised

    def one(self, x):
        if not self.quantised:
            return self.to.compress(x)
        step = np.float32(2 * self.eb(x))
        return step.tobytes() + self.to.compress(np.rint(x / step).astype(np.int8))

    def back(self, code, shape):
        if not self.quantised:
            return np.frombuffer(self.fro.decompress(code), np.float32).reshape(shape)
        step = np.frombuffer(code[:4], np.float32)[0]
        return (np.frombuffer(self.fro.decompress(code[4:]), np.int8) * step).reshape(shape)


class Zfp(Each):
    def __init__(self):
        import zfpy
        self.zfpy = zfpy

    def one(self, x):
        return self.zfpy.compress_numpy(x, tolerance=self.eb(x))

    def back(self, code, shape):
        return self.zfpy.decompress_numpy(code)


class Sz3(Each):
    def __init__(self, algorithm):
        import pysz
        self.sz, self.config = pysz.sz, pysz.szConfig()
        self.config.cmprAlgo = getattr(pysz.szAlgorithm, algorithm)
        self.config.errorBoundMode = pysz.szErrorBoundMode.REL

    def one(self, x):
        self.config.relErrorBound = self.bound
        return self.sz.compress(x, self.config)[0]

    def back(self, code, shape):
        return self.sz.decompress(code, np.float32, shape)[0]


def arms(library):
    made = {f"trireme {name}": Ours(library, name) for name in OURS}
    peers = {f"zstd -{level}": lambda level=level: Zstd(level, False) for level in (1, 3)}
    peers |= {f"int8 + zstd -{level}": lambda level=level: Zstd(level, True) for level in (1, 3, 19)}
    peers["zfp"] = Zfp
    peers |= {f"SZ3 {a}": lambda a=a: Sz3(a) for a in ("NOPRED", "LORENZO_REG", "INTERP_LORENZO")}
    for name, make in peers.items():
        try:
            made[name] = make()
        except ImportError as e:
            print(f"{name}: {e}", file=sys.stderr)
    return made


# ---- rows

def generated(batches, rows=2048, dim=64, table=36084):
    """As bench/embedding_rows.cpp: popular rows have grown, by a spread of their own."""
    random = np.random.default_rng(1)
    share = (np.arange(1, table + 1) + 1.0) ** -1.05
    share /= share.sum()
    deviation = 0.0055 * (1 + 2048 * share) ** 0.27 * np.exp(0.5 * random.standard_normal(table))
    values = (deviation[:, None] * random.standard_normal((table, dim))).astype(np.float32)
    return [values[random.choice(table, rows, p=share)] for _ in range(batches)]


def inputs(folder):
    all_inputs = {"generated, 8 x 2048 x 64": generated(8)}
    for label, file, rows, dim in (("Terabyte table 1, 2048 x 64", "terabyte_table1_2048x64.f32", 2048, 64),
                                   ("Kaggle table 5, 128 x 32", "kaggle_table5_128x32.f32", 128, 32)):
        if folder and (Path(folder) / file).exists():
            all_inputs[label] = [np.fromfile(Path(folder) / file, np.float32).reshape(rows, dim)]
    return all_inputs


# ---- measuring

def seconds(f, times):
    begin = time.process_time()
    for _ in range(times):
        f()
    return (time.process_time() - begin) / times


def measure(library, chunks, bound, blocks):
    """Rows of one input at one bound. A block lasts at least 4 ms."""
    made, size, ratio, error, times, taken = arms(library), sum(x.nbytes for x in chunks), {}, {}, {}, {}
    for name, arm in made.items():
        arm.prepare(chunks, bound)
        ratio[name] = size / arm.encode()
        error[name] = max(float(np.abs(y.astype(np.float64) - x).max()) / (float(x.max()) - float(x.min()))
                          for x, y in zip(chunks, arm.decode()))
        times[name] = [max(1, min(1000, math.ceil(0.004 / max(seconds(f, 2), 1e-6)))) for f in (arm.encode, arm.decode)]
        taken[name] = [], []
    for _ in range(blocks):
        for name, arm in made.items():
            for which, f in enumerate((arm.encode, arm.decode)):
                taken[name][which].append(seconds(f, times[name][which]))
    return [{"arm": name, "rel_eb": bound, "ratio": ratio[name], "max_error": error[name],
             "encode_gbps": size / statistics.median(taken[name][0]) / 1e9,
             "decode_gbps": size / statistics.median(taken[name][1]) / 1e9} for name in made]


# ---- the plot

def plot(rows, what):
    """Ratio against GB/s, logarithmic, at 0.03: one panel to encode, one to decode."""
    width, height, left, top, panel = 860, 330, 46, 34, 350
    rows = [r for r in rows if r["input"] == what and r["rel_eb"] == 0.03]
    low, high = 0.01, 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
           f'font-size="10"><rect width="{width}" height="{height}" fill="white"/>'
           f'<text x="{left}" y="14" font-size="12">{what}, relative bound 0.03, one core</text>']
    for p, key in enumerate(("encode_gbps", "decode_gbps")):
        x0, y1 = left + p * (panel + 64), top + 260
        x = lambda v: x0 + panel * math.log(v) / math.log(120)
        y = lambda v: y1 - 260 * math.log(max(v, low) / low) / math.log(high / low)
        out.append(f'<text x="{x0}" y="{top - 4}">{key[:6]}, GB/s of float input</text>'
                   f'<text x="{x0 + panel}" y="{y1 + 26}" text-anchor="end">ratio</text>')
        for v in (1, 2, 5, 10, 20, 50):
            out.append(f'<path d="M{x(v):.0f} {top}V{y1}" stroke="#ddd"/><text x="{x(v):.0f}" y="{y1 + 13}" '
                       f'text-anchor="middle">{v}</text>')
        for v in (0.01, 0.1, 1, 10):
            out.append(f'<path d="M{x0} {y(v):.0f}h{panel}" stroke="#ddd"/><text x="{x0 - 4}" y="{y(v) + 3:.0f}" '
                       f'text-anchor="end">{v:g}</text>')
        best = sorted((r for r in rows if not any(o["ratio"] >= r["ratio"] and o[key] > r[key] for o in rows)),
                      key=lambda r: r["ratio"])
        line = " ".join(f'{x(r["ratio"]):.0f},{y(r[key]):.0f}' for r in best)
        out.append(f'<polyline points="{line}" fill="none" stroke="#999" stroke-dasharray="4 3"/>')
        labels = []
        for r in sorted(rows, key=lambda r: -r[key]):
            own, cx, cy, at = r["arm"].startswith("trireme"), x(r["ratio"]), y(r[key]), y(r[key]) + 3
            while any(abs(at - b) < 8 and abs(cx - a) < 75 for a, b in labels):
                at += 1
            labels.append((cx, at))
            out.append(f'<circle cx="{cx:.0f}" cy="{cy:.0f}" r="3" fill="{"#c2410c" if own else "#1d4ed8"}"/>'
                       f'<text x="{cx + 5:.0f}" y="{at:.0f}" font-size="8">{r["arm"].removeprefix("trireme ")}</text>')
    return "\n".join(out) + "</svg>\n"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("library")
    options.add_argument("--dumps", default=os.environ.get("TRIREME_EMBEDDINGS"))
    options.add_argument("--json")
    options.add_argument("--svg")
    options.add_argument("--blocks", type=int, default=9)
    o = options.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    library = c.CDLL(o.library)
    library.trireme_codec_message.restype = c.c_char_p
    rows = []
    for what, chunks in inputs(o.dumps).items():
        for bound in BOUNDS:
            for row in measure(library, chunks, bound, o.blocks):
                rows.append({"input": what} | row)
                print(f'{what:28} {bound:.2f} {row["arm"]:22} ratio {row["ratio"]:7.2f}  encode '
                      f'{row["encode_gbps"]:7.3f}  decode {row["decode_gbps"]:7.3f} GB/s  error {row["max_error"]:.5f}')
    if o.json:
        Path(o.json).write_text(json.dumps({"rows": rows}, indent=1))
    if o.svg:
        Path(o.svg).write_text(plot(rows, next((r["input"] for r in rows if "Terabyte" in r["input"]), rows[0]["input"])))


if __name__ == "__main__":
    main()

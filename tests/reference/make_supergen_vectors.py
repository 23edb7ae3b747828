#!/usr/bin/env python3
"""Transcripts of SuperGen's tile gate (section 6.4 of its description: fixed form), written in numpy and apart from our code.

    python3 tests/reference/make_supergen_vectors.py > tests/reference/supergen_gate.json

A position-sensitive stand-in for a model refines a canvas by Euler steps in f64. Each case lists its settings, the decisions of every step
('#' computed, '.' reused, tiles in row-major order), k of every tile and the threshold of every tile at the end, and a few values of the last
canvas. A case whose error estimate comes nearer to a threshold than 1e-4 of it is refused here, since f32 might decide otherwise.
"""
import json
import math
import sys

import numpy as np

PLANES = 3
MARGIN = 1e-4


def start(rows, columns):
    p, r, c = np.meshgrid(np.arange(PLANES), np.arange(rows), np.arange(columns), indexing="ij")
    return np.sin(1.3 * p + 0.37 * r) + np.cos(0.21 * c * (p + 1)) + 0.3 * np.sin(1.9 * r + 2.3 * c + p)


def model(tile, sigma):
    p, r, c = np.meshgrid(*(np.arange(n) for n in tile.shape), indexing="ij")
    return 0.6 * tile + 0.4 * sigma * np.sin(0.9 * tile + 0.7 * r + 0.4 * c + p) + 0.1 * tile.mean()


class Welford:
    def __init__(self):
        self.n, self.mean, self.m2 = 0, 0.0, 0.0

    def push(self, v):
        self.n += 1
        d = v - self.mean
        self.mean += d / self.n
        self.m2 += d * (v - self.mean)

    def std(self):
        return math.sqrt(self.m2 / self.n) if self.n else 0.0


def run(size, window, loop_step, shift_every, steps, ret_steps, base, a, mode, every):
    (H, W), (wh, ww) = size, window
    x = start(H, W)
    grid = [(r, c) for r in range(H // wh) for c in range(W // ww)]
    step_h, step_w = wh // loop_step, ww // loop_step
    cycle_h, cycle_w = wh // math.gcd(wh, step_h), ww // math.gcd(ww, step_w)
    E = np.zeros((H, W))
    k = [None] * len(grid)
    was_computed = [False] * len(grid)
    stats = [Welford() for _ in grid]
    thr = [base] * len(grid)
    xp = xpp = yp = ypp = R = None
    decisions = []
    sigmas = [1 - i / steps for i in range(steps)] + [0.0]
    for i in range(steps):
        j = i // shift_every if shift_every else 0
        sh = (j % cycle_h) * step_h if H > wh else 0
        sw = (j % cycle_w) * step_w if W > ww else 0
        places = [np.ix_(range(PLANES), [(r * wh + sh + n) % H for n in range(wh)], [(c * ww + sw + n) % W for n in range(ww)]) for r, c in grid]
        if i > 0 and i % every == 0:
            order = sorted(range(len(grid)), key=lambda t: -stats[t].std())
            thr = [base] * len(grid)
            if mode == "top_selective":
                thr[order[1]] = base * (1 + a / 2)
            else:
                thr[order[-1]] = base * (1 - a / 2)
            thr[order[0]] = base * (1 + a)
        y = np.zeros_like(x)
        line = ""
        chosen = []
        for t, at in enumerate(places):
            flat = (at[1][0], at[2][0])
            dense = i < max(ret_steps, 3) or i >= steps - 1
            if not dense:
                moved_p = np.abs(xp[at] - xpp[at]).mean()
                size_p = np.abs(yp[at]).mean()
                if moved_p == 0 or size_p == 0:
                    dense = True
                elif was_computed[t]:
                    k[t] = np.abs(yp[at] - ypp[at]).mean() / moved_p
                if not dense and k[t] is None:
                    dense = True
                if not dense:
                    E[flat] += k[t] * np.abs(x[at] - xp[at]).mean() / size_p
                    e = E[flat].mean()
                    if base and abs(e - thr[t]) < MARGIN * thr[t]:
                        sys.exit(f"step {i}, tile {t}: too near to the threshold to be a test")
                    dense = not e < thr[t]
            if dense:
                E[flat] = 0
                y[at] = model(x[at], sigmas[i])
            else:
                y[at] = x[at] + R[at]
            chosen.append(dense)
            line += "#" if dense else "."
        for t, at in enumerate(places):
            stats[t].push(np.abs(y[at]).mean())
        xpp, xp = (x if xp is None else xp), x.copy()
        if yp is None:
            yp, ypp, R = y.copy(), y.copy(), y - x
        for t, at in enumerate(places):
            if chosen[t]:
                ypp[at], yp[at], R[at] = yp[at], y[at], y[at] - x[at]
        was_computed = chosen
        decisions.append(line)
        x = x + (sigmas[i + 1] - sigmas[i]) * y
    return {"decisions": decisions, "k": k, "thresholds": thr, "canvas": x[:, :: H // 4, :: W // 4].ravel().tolist()}


CASES = [
    dict(size=[24, 40], window=[12, 10], loop_step=4, shift_every=1, steps=24, ret_steps=5, base=0.5, a=0.5, mode="top_selective", every=5),
    dict(size=[24, 40], window=[12, 10], loop_step=4, shift_every=3, steps=24, ret_steps=5, base=0.2, a=0.5, mode="max_min_adjust", every=5),
    dict(size=[24, 40], window=[12, 10], loop_step=4, shift_every=0, steps=24, ret_steps=0, base=0.15, a=0.3, mode="top_selective", every=4),
    dict(size=[27, 32], window=[9, 16], loop_step=3, shift_every=1, steps=30, ret_steps=7, base=0.7, a=0.5, mode="top_selective", every=5),
    dict(size=[12, 40], window=[12, 20], loop_step=5, shift_every=1, steps=16, ret_steps=5, base=0.0, a=0.5, mode="top_selective", every=5),
]

json.dump([dict(case, **run(**case)) for case in CASES], sys.stdout, indent=None, separators=(",", ":"))
print()

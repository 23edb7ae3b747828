#!/usr/bin/env python3
"""A transcript of RAS's choices for tests/unit/sdit_test.cpp, in NumPy from the paper's rule (arXiv 2502.10389) with the
released code's constants; it shares no code with either.

usage: ras_vectors.py OUT.safetensors [seed]

vI f32 [steps, channels, rows, columns]: what the model says of every pixel; sigmas are linspace(1, 0, steps + 1).
Case k: caseK i64 [I, steps, start, end, reset, sign], ruleK f64 [ratio, starvation, high_ratio], activeK u8
[steps, tokens] (1: computed in that step). rampK cases: skips i64 [steps] at [tokens, steps, start, reset, ramp,
ramp_steps]. Patches are 2x2; a token left out keeps its last velocity.
"""
import sys

import numpy as np
from safetensors.numpy import save_file


def tokens_of(pixels):
    rows, columns = pixels.shape
    return pixels.reshape(rows // 2, 2, columns // 2, 2).mean(axis=(1, 3)).reshape(-1)


def pixels_of(tokens, rows, columns):
    return tokens.reshape(rows // 2, columns // 2).repeat(2, axis=0).repeat(2, axis=1)


def transcript(v, sigmas, start, end, reset, sign, ratio, starvation, high):
    steps, _, rows, columns = v.shape
    n = rows * columns // 4
    skip = int((1 - ratio) * n)
    dropped = np.full(n, -float(len(sigmas)))
    active = np.ones((steps, n), dtype=np.uint8)
    known = v[0].astype(np.float64)
    for step in range(steps):
        fresh = pixels_of(active[step].astype(bool), rows, columns)
        known = np.where(fresh, v[step], known)
        following = step + 1
        if not (start <= following < min(end, steps)) or following == reset:
            continue
        metric = tokens_of(((sigmas[following] - sigmas[step]) * known).std(axis=0, ddof=1))
        metric = metric * np.exp(sign * starvation * dropped)
        order = np.argsort(metric, kind="stable")
        low, top = int(skip * (1 - high)), int(skip * high)
        out = np.concatenate([order[:low], order[n - top:]])
        dropped[out] += 1
        active[following, out] = 0
    return active


def skips(tokens, ratio, steps, start, reset, ramp, ramp_steps):
    result = []
    for step in range(steps):
        value = int((1 - ratio) * tokens) + ramp * (step // ramp_steps - (steps + start) // ramp_steps // 2)
        result.append(0 if step < start or step == reset else value // 64 * 64)
    return result


def main():
    rng = np.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 3)
    arrays, k = {}, 0
    steps, start, end, reset = 9, 2, 9, 5
    sigmas = np.linspace(1, 0, steps + 1)
    for shape, (rows, columns) in enumerate(((16, 16), (12, 20))):
        place = rng.uniform(0.3, 2, size=(1, 1, rows, columns))  # busy and quiet places
        v = (place * rng.standard_normal((steps, 3, rows, columns))).astype(np.float32)
        arrays[f"v{shape}"] = v
        for high in (0.0, 0.3, 1.0):
            for sign in (1, -1):
                rule = 0.5, 0.1 if sign > 0 else 1.0, high
                arrays[f"case{k}"] = np.array([shape, steps, start, end, reset, sign], dtype=np.int64)
                arrays[f"rule{k}"] = np.array(rule)
                arrays[f"active{k}"] = transcript(v, sigmas, start, end, reset, sign, *rule)
                k += 1
    for i, (tokens, steps, start, reset, ramp, ramp_steps) in enumerate(((4096, 30, 4, 12, 256, 4), (2304, 28, 4, 20, 128, 4))):
        arrays[f"ramp{i}"] = np.array([tokens, steps, start, reset, ramp, ramp_steps], dtype=np.int64)
        arrays[f"skips{i}"] = np.array(skips(tokens, 0.5, steps, start, reset, ramp, ramp_steps), dtype=np.int64)
    save_file(arrays, sys.argv[1])


if __name__ == "__main__":
    main()

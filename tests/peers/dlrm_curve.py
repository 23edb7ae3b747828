#!/usr/bin/env python3
"""One hundred steps of plain SGD from equal weights: the losses of `trireme train` beside those of facebookresearch/dlrm's own
class. A batch is all samples of a generated set, so that the order, which each program draws for itself, is not there.

usage: dlrm_curve.py --trireme BINARY --dlrm CHECKOUT [--steps 100] [--work FOLDER]
Needs torch, h5py, safetensors, and what dlrm_s_pytorch.py imports. Prints one line; exit 1 above 1e-5, relative.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import h5py
import torch
from safetensors.torch import load_file

from dlrm_logits import reference

SAMPLES, RATE = 2048, 0.1
KEYS = ["recipe: dlrm", "seed: 1", f"batch_size: {SAMPLES}", "log_every: 1", "eval_every: 0",
        "checkpoint: {every: 0, best: false}", "model: {dim: 16, bottom: [64, 32], top: [64]}"]


def trained(o, work, data, name, steps, rate, init=""):
    """A run of so many steps -> its losses."""
    file = work / f"{name}.yaml"
    optimizer = f"optimizer: {{name: sgd, lr: {rate}, momentum: 0.0, weight_decay: 0.0, schedule: const}}"
    lines = KEYS + [f"steps: {steps}", f"data: {{file: {data}}}", optimizer] + ([f"init_from: {init}"] if init else [])
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    subprocess.run([o.trireme, "train", str(file), "--out", str(work / name), "--fresh"], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in open(work / name / "metrics.jsonl", encoding="utf-8")]
    return [r["loss"] for r in rows if r.get("loss") is not None and "lr" in r]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trireme", required=True)
    parser.add_argument("--dlrm", required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--work", default="")
    o = parser.parse_args()
    work = pathlib.Path(o.work or tempfile.mkdtemp())
    data = work / "data.h5"
    subprocess.run([o.trireme, "data", "criteo_like", "--shape", "kaggle", "--scale", "1000", "--samples", str(SAMPLES), "--test-samples",
                    "100", "--out", str(data)], check=True, stdout=subprocess.DEVNULL)
    trained(o, work, data, "begin", 1, 0)
    subprocess.run([o.trireme, "export", str(work / "begin"), "--out", str(work / "weights")], check=True, stdout=subprocess.DEVNULL)
    weights = load_file(work / "weights" / "model.safetensors")
    ours = trained(o, work, data, "run", o.steps, RATE, work / "weights" / "model.safetensors")
    model, forward = reference(o.dlrm, weights)
    with h5py.File(data) as file:
        first, last = json.loads(bytes(file["tables"][()]))["train"]
        dense, ids, label = (torch.tensor(file[name][first:last]) for name in ("dense", "ids", "label"))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    worst = 0.0
    for k in range(o.steps):
        loss = torch.nn.functional.binary_cross_entropy(forward(dense, ids.long()), label.float())
        worst = max(worst, abs(loss.item() - ours[k]) / loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{o.steps} steps, loss {ours[0]:.5f} to {ours[-1]:.5f}: at most {worst:.1e} apart, relative")
    return 0 if len(ours) == o.steps and worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())

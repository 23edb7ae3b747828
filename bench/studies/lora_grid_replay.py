#!/usr/bin/env python3
"""What other settings of early exit would have decided on the curves of lora_grid.py's runs to the end, by `trireme sweep
decide`; no GPU.

  python3 bench/studies/lora_grid_replay.py window=10 window=10,tau_gap=3 --out runs/grid --seeds 1 2

A job's curve up to its exit is that of its run to the end but for rounding. All settings are changes of the paper's, which
come first.
"""
import argparse
import collections
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from study import ROOT, markdown

TASKS = ["two_steps", "four_steps"]
BINARY = str(ROOT / "build/release/bin/trireme")


def ordered(head, rows, warmup):
    """As the cut has it: all jobs up to its step, where they wait for each other, then what comes after."""
    boundary = {job: max(1, math.ceil(warmup * total - 1e-9)) for job, total in head["total_steps"].items()}
    return sorted(rows, key=lambda row: row["step"] > boundary[row["job"]])


def exits(head, decisions):
    """{job: (end, step)}."""
    found = {job: ("done", total) for job, total in head["total_steps"].items()}
    return found | {d["job"]: (d["decision"], d["step"]) for d in decisions if d["decision"] != "kept"}


def best_of(rows, job, step):
    """Lowest validation loss up to that step."""
    return min((r["val_loss"] for r in rows if r["job"] == job and r["step"] <= step and r.get("val_loss") is not None), default=math.inf)


@functools.cache
def curves(file):
    """Its first line, and the others."""
    head, *rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    return head, rows


def decide(binary, head, rows):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False, encoding="utf-8") as file:
        file.write("\n".join(map(json.dumps, [head, *rows])) + "\n")
    try:
        text = subprocess.run([binary, "sweep", "decide", file.name], check=True, capture_output=True, text=True).stdout
    finally:
        os.unlink(file.name)
    return [json.loads(line) for line in text.splitlines()]


def replay(out, seed, name, settings, binary=BINARY):
    """Of the winner: its job, its loss where it ended; the share of samples saved; how many jobs ended how."""
    folder = Path(out) / f"exhaustive_{seed}" / name
    head, rows = curves(str(folder / "losses.jsonl"))
    head = head | {"enabled": True} | settings
    barrier = head["cut"] == "barrier"
    ends = exits(head, decide(binary, head, ordered(head, rows, head["warmup_ratio"]) if barrier else rows))
    whole = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    batch = {job["job"]: job["batch_size"] for job in whole["jobs"]}
    losses = [r for r in rows if "val_loss" in r]
    best = {job: best_of(losses, job, step) for job, (end, step) in ends.items() if end in ("done", "overfitting")}
    winner = min(best, key=best.get) if best else None
    each = whole["all_samples"] // len(batch)  # a last batch is not full
    trained = sum(min(step * batch[job], each) for job, (_, step) in ends.items())
    return {"winner": winner, "best": best.get(winner, math.nan), "saved": 1 - trained / whole["all_samples"],
            "ends": collections.Counter(end for end, _ in ends.values())}


def regrets(out, seed, name, replayed):
    """Of the winner's run to the end, and of what it was where it ended; over the best of all."""
    whole = json.loads((Path(out) / f"exhaustive_{seed}" / name / "result.json").read_text(encoding="utf-8"))
    final = {job["job"]: math.inf if job["best"] is None else job["best"] for job in whole["jobs"]}
    best = min(final.values())
    return final.get(replayed["winner"], math.nan) / best - 1, replayed["best"] / best - 1


def parsed(text):
    """key=value,..."""
    return {key: value if key == "cut" else json.loads(value) for key, value in (pair.split("=") for pair in text.split(",") if pair)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/grid")
    parser.add_argument("--binary", default=BINARY)
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6])
    parser.add_argument("settings", nargs="*", help="key=value,... of early_exit")
    options = parser.parse_args()
    rows = []
    for text in ["", *options.settings]:
        found = [(replay(options.out, seed, name, parsed(text), options.binary), seed, name) for seed in options.seeds for name in TASKS]
        each = [regrets(options.out, seed, name, r) for r, seed, name in found]
        percent = lambda v: f"{100 * v:.2f} %"
        least = lambda end: min(r["ends"][end] for r, _, _ in found)
        rows.append([text or "the paper's", percent(statistics.median(e[0] for e in each)), percent(max(e[0] for e in each)),
                     percent(statistics.median(e[1] for e in each)), percent(max(e[1] for e in each)),
                     f"{percent(min(r['saved'] for r, _, _ in found))} to {percent(max(r['saved'] for r, _, _ in found))}",
                     least("diverging"), least("overfitting")])
    print(markdown(["settings", "regret, median", "worst", "where it ended, median", "worst", "samples saved", "diverging, least",
                    "overfitting, least"], rows))


if __name__ == "__main__":
    sys.exit(main())

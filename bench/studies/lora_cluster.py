#!/usr/bin/env python3
"""Several LoRA tasks of 1 and 2 ranks beside each other, one of them handed in while the others run: what was predicted
and what happened.

  python3 bench/studies/lora_cluster.py --model runs/pretrain_gpu --out runs/cluster --device cuda
  python3 bench/studies/lora_cluster.py --tables --out runs/cluster

Without early exit, so that a prediction can be compared with what a task took; --cut leaves it on. Tables: of every task
what was predicted when it arrived, once it had measured steps before its first (its profile), and while it ran (every
time that what is left moved by a tenth), and what it took; of the run the first plan's end, the last plan's before the
first task ended, and the end.
"""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from study import ROOT, markdown

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name: ranks, level, training samples; "late" is handed in. On H200s 10 to 20 s each, since a task takes 0.6 to 1.3 s to
# begin: a recorded step takes 3 ms on one GPU and about 5 on several.
TASKS = {"wide": (2, 2, 5), "small": (1, 1, 6), "long": (1, 3, 8), "second_wide": (2, 1, 4)}
LATE = {"late": (1, 2, 6)}


def sweep(options, tasks):
    content = {name: {"data": "arithmetic", "level": level, "length": 128, "train": int(options.samples * share),
                      "held_out": 32, "test": 0, "template": "plain", "ranks": ranks}
               for name, (ranks, level, share) in tasks.items()}
    return {"recipe": "lora_sweep", "model": str(Path(options.model).resolve()), "device": options.device,
            "precision": "bf16" if options.device == "cuda" else "f32", "lora": {"targets": TARGETS},
            "search": {"lr": [5e-4, 2e-3], "rank": [8, 16], "batch_size": [2, 4], "alpha": "2r"},
            "train": {"epochs": options.epochs}, "early_exit": {"enabled": options.cut, "eval_fraction": 0.05},
            "checkpoint": {"every": 0}, "tasks": content}


def write(path, content):
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return str(path)


def events_of(run):
    file = run / "schedule.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def run(options):
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    folder = out / "run"
    first, late = write(out / "tasks.yaml", sweep(options, TASKS)), write(out / "late.yaml", sweep(options, LATE))
    log = open(out / "run.log", "w", encoding="utf-8")
    each = lambda ranks, share: 1 + (0.005 if ranks > 1 else 0.003) * options.samples * share * options.epochs / 2
    work = sum(ranks * each(ranks, share) for ranks, _, share in [*TASKS.values(), *LATE.values()]) / options.ranks
    print(f"predicted on H200s: {3 + work:.0f} s", flush=True)
    begin = time.monotonic()
    left = lambda: options.time_limit - (time.monotonic() - begin)
    running = subprocess.Popen([options.binary, "sweep", first, "--ranks", str(options.ranks), "--out", str(folder)],
                               stdout=log, stderr=subprocess.STDOUT)
    # As soon as two tasks have begun.
    while running.poll() is None and left() > 0 and sum(e["event"] == "start" for e in events_of(folder)) < 2:
        time.sleep(0.2)
    if running.poll() is None:
        time.sleep(options.late_after)
        added = subprocess.run([options.binary, "sweep", "add", late, "--to", str(folder)], capture_output=True, text=True)
        print(f"{time.monotonic() - begin:.1f} s: sweep add: exit {added.returncode} {added.stdout.strip()} {added.stderr.strip()}")
    try:
        code = running.wait(timeout=max(0, left()))
    except subprocess.TimeoutExpired:
        running.terminate()  # the launcher ends the ranks
        running.wait()
        code = "no time left"
    print(f"{time.monotonic() - begin:.1f} s, exit {code}", flush=True)


def percent_over(predicted, actual):
    return f"{100 * (predicted / actual - 1):+.1f} %" if actual > 0 else "-"


def tables(options):
    events = events_of(Path(options.out) / "run")
    at, told = {}, {}
    for e in events:
        if "task" in e:
            at.setdefault(e["task"], {}).setdefault(e["event"], e)
        if e["event"] == "measured":
            told.setdefault(e["task"], []).append(e)
    rows = []
    for name, of in at.items():
        if not {"arrive", "start", "done"} <= of.keys():
            rows.append([name, of["arrive"]["gpus"] if "arrive" in of else "-", *["-"] * 8])
            continue
        took, predicted = of["done"]["t"] - of["start"]["t"], of["arrive"]["seconds"]
        measured = of.get("measured")
        total = measured["t"] - of["start"]["t"] + measured["remaining"] if measured else None
        over = lambda m: percent_over(m["remaining"], of["done"]["t"] - m["t"])
        rows.append([name, len(of["start"]["gpus"]), f"{of['arrive']['t']:.1f}", f"{of['start']['t']:.1f}", f"{predicted:.1f}",
                     f"{total:.1f}" if measured else "-", f"{took:.1f}", percent_over(total, took) if measured else "-",
                     over(measured) if measured else "-", "; ".join(map(over, told.get(name, [])[1:])) or "-"])
    text = markdown(["task", "ranks", "arrived, s", "began, s", "predicted at arrival, s", "after measuring, s", "took, s",
                     "predicted over actual", "of what was left", "of it, said later"], rows)
    plans = [e for e in events if e["event"] == "plan"]
    ends = [e["t"] for e in events if e["event"] == "done"]
    if plans and ends:
        before = [p for p in plans if p["t"] <= min(ends)]
        text += (f"\n\nEnd: first plan {plans[0]['makespan']:.1f} s, last plan before a task ended {before[-1]['makespan']:.1f} s, "
                 f"last plan {plans[-1]['makespan']:.1f} s, actual {max(ends):.1f} s. {len(plans)} plans.\n")
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/pretrain_gpu")
    parser.add_argument("--out", default="runs/cluster")
    parser.add_argument("--binary", default=str(ROOT / "build/release/bin/trireme"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--late-after", type=float, default=2, help="seconds after the second task began")
    parser.add_argument("--cut", action="store_true", help="with early exit")
    parser.add_argument("--time-limit", type=float, default=1e6, help="seconds")
    parser.add_argument("--tables", action="store_true", help="of what is there; run nothing")
    options = parser.parse_args()
    if not options.tables:
        run(options)
    text = tables(options)
    print(text)
    (Path(options.out) / "tables.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

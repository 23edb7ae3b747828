#!/usr/bin/env python3
"""The grid of a LoRA sweep: 5 learning rates x 3 ranks x 4 batch sizes, with and without early exit.

  trireme train recipes/lora_sweep/pretrain_gpu.yaml                                   # the backbone, once
  python3 bench/studies/lora_grid.py --model runs/pretrain_gpu --out runs/grid --device cuda --seeds 1
  python3 bench/studies/lora_grid.py --tables --out runs/grid                          # of what is there

Runs in full, of every seed: all jobs batched to their ends (exhaustive); batched with early exit; batched with ASHA;
PEFT's defaults alone. One job at a time is extrapolated: of every rank and batch size --time-steps steps are timed, times
the steps that were counted. The rates are the paper's (1e-5 to 5e-4) times 20, since the backbone is small; PEFT's
quick tour trains at 1e-3. Chosen before the first run. Everything is kept: the same command goes on where it was cut.
"""
import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from study import ROOT, markdown

RATES = [2e-4, 1e-3, 4e-3, 6e-3, 1e-2]
RANKS = [16, 32, 64]
BATCHES = [1, 2, 4, 8]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEVELS = {"two_steps": 2, "four_steps": 3}  # tasks: levels of arithmetic
EPOCHS, WARMUP, KEEP = 3, 0.05, 0.25
VALIDATION = 16  # samples of every evaluation: at 1 % of the steps more would cost more than the training
EARLY = {"warmup_ratio": WARMUP, "keep_ratio": KEEP}


def task(level, samples, held_out, test):
    return {"data": "arithmetic", "level": level, "length": 128, "train": samples, "held_out": held_out, "test": test,
            "template": "plain"}


def sweep(options, seed, early, **more):
    """A sweep file, which JSON is too."""
    tasks = {name: task(level, options.samples, options.held_out, options.test) for name, level in LEVELS.items()}
    return {"recipe": "lora_sweep", "model": str(Path(options.model).resolve()), "seed": seed, "device": options.device,
            "precision": "bf16" if options.device == "cuda" else "f32", "lora": {"targets": TARGETS},
            "search": {"lr": RATES, "rank": RANKS, "batch_size": BATCHES, "alpha": "2r"}, "train": {"epochs": EPOCHS},
            "early_exit": early | {"val_cap": VALIDATION}, "checkpoint": {"every": 0}, "tasks": tasks} | more


def files(options):
    """{name: sweep} in the order of their worth, if time ends."""
    runs = {}
    for seed in range(1, options.seeds + 1):
        runs[f"both_{seed}"] = sweep(options, seed, EARLY)
        runs[f"exhaustive_{seed}"] = sweep(options, seed, {"enabled": False})
        runs[f"default_{seed}"] = sweep(options, seed, {"enabled": False},
                                        search={"lr": [1e-3], "rank": [8], "batch_size": [8], "alpha": "r"})
        if seed == 1:  # every shape by itself
            steps = options.time_steps
            tasks = {f"{name}_b{b}": task(level, steps * b, options.held_out, 0) | {
                "search": {"lr": [2e-4], "rank": RANKS, "batch_size": [b], "alpha": "2r"}}
                for name, level in LEVELS.items() for b in BATCHES}
            runs["sequential"] = sweep(options, 1, {"enabled": False, "eval_fraction": 1}, tasks=tasks,
                                       train={"epochs": 1}, execution={"arm": "sequential"})
        runs[f"asha_{seed}"] = sweep(options, seed, {"cut": "asha"})
    return runs


def run_all(options):
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.time_limit
    for name, content in files(options).items():
        file = out / (name + ".yaml")
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")
        if all((out / name / t / "result.json").exists() for t in content["tasks"]):
            continue
        left = end - time.monotonic()
        if left < 5:
            print(f"{name}: no time left", flush=True)
            return
        begin = time.monotonic()
        with open(out / (name + ".log"), "w", encoding="utf-8") as log:
            command = [str(options.binary), "sweep", str(file), "--out", str(out / name), *options.override]
            try:
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=left).returncode
            except subprocess.TimeoutExpired:
                code = "no time left"
        print(f"{name}: {time.monotonic() - begin:.1f} s, exit {code}", flush=True)


# ---- what they say


def result(out, run, name):
    file = Path(out) / run / name / "result.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def key(job):
    return job["lr"], job["rank"], job["batch_size"]


def curves(out, run, name):
    """{job: [(step, validation loss)]}."""
    by_job = {}
    for line in (Path(out) / run / name / "losses.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "val_loss" in record:
            v = record["val_loss"]
            by_job.setdefault(record["job"], []).append((record["step"], math.inf if v is None else v))
    return by_job


def ranks_of(values):
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0.0] * len(values)
    for place, i in enumerate(order):
        ranks[i] = place
    return ranks


def spearman(x, y):
    return statistics.correlation(ranks_of(x), ranks_of(y))


def random_regret(losses, keep, draws=20000):
    """Mean and 95th percentile of the best of `keep` jobs taken at random, over the best of all."""
    draw, best = random.Random(1), min(losses)
    regrets = sorted(min(draw.sample(losses, keep)) / best - 1 for _ in range(draws))
    return statistics.mean(regrets), regrets[int(0.95 * draws)]


def search_worth(out, seed, name):
    """Of the jobs that ran to their ends: how far they lie apart, and what their losses after 5 % tell."""
    whole = result(out, f"exhaustive_{seed}", name)
    by_job = curves(out, f"exhaustive_{seed}", name)
    early, final = [], []
    for job in whole["jobs"]:
        boundary = math.ceil(WARMUP * job["total_steps"] - 1e-9)
        early.append(next(v for step, v in by_job[job["job"]] if step >= boundary))
        final.append(job["best"] if job["best"] is not None else math.inf)
    best, quarter = min(final), len(final) // 4
    top = lambda v: set(sorted(range(len(v)), key=lambda i: v[i])[:quarter])
    return {"jobs": len(final), "best": best, "median_above": statistics.median(final) / best - 1, "final": final,
            "spearman": spearman(early, final), "coverage": len(top(early) & top(final)) / quarter}


def seconds_alone(out, name, jobs):
    """Extrapolated: these jobs' steps one after the other, and an evaluation's time."""
    step, evaluation = {}, []
    for b in BATCHES:
        timed = result(out, "sequential", f"{name}_b{b}")
        if timed is None:
            return None
        for job in timed["jobs"]:
            step[job["rank"], b] = job["seconds"] / job["steps"]
        evaluation.append(timed["evaluation_seconds"] / len(timed["jobs"]))
    each = statistics.median(evaluation)
    trained = sum(job["steps"] * step[job["rank"], job["batch_size"]] for job in jobs)
    evaluated = sum(math.ceil(job["steps"] / math.ceil(0.01 * job["total_steps"])) * each for job in jobs)
    return trained + evaluated


def regret(chosen, final_of, best):
    if chosen is None or chosen["winner"] < 0:
        return math.nan
    return final_of[key(chosen["jobs"][chosen["winner"]])] / best - 1


def percent(v, digits=2):
    return "-" if v is None or math.isnan(v) else f"{100 * v:.{digits}f} %"


def tables(options):
    out, worth, quality, speed, summary = options.out, [], [], [], []
    for seed in range(1, options.seeds + 1):
        for name in LEVELS:
            whole, both = result(out, f"exhaustive_{seed}", name), result(out, f"both_{seed}", name)
            asha, default = result(out, f"asha_{seed}", name), result(out, f"default_{seed}", name)
            if whole is None or both is None:
                continue
            w = search_worth(out, seed, name)
            ends = {e: sum(j["end"] == e for j in both["jobs"]) for e in ("diverging", "overfitting", "underperforming", "done")}
            worth.append([name, seed, w["jobs"], f"{w['best']:.4f}", percent(w["median_above"], 1), *ends.values(),
                          f"{w['spearman']:.2f}", percent(w["coverage"], 0)])
            final_of = {key(j): f for j, f in zip(whole["jobs"], w["final"])}
            kept = math.ceil(KEEP * w["jobs"])
            mean, high = random_regret(w["final"], kept)
            saved = lambda r: 1 - r["samples"] / r["all_samples"] if r else math.nan
            exact = lambda r: percent(r.get("exact_match") if r and r.get("exact_match") is not None else math.nan, 1)
            quality += [[name, seed, "exhaustive", "0 %", "0 %", exact(whole)],
                        [name, seed, "early exit", percent(saved(both)), percent(regret(both, final_of, w["best"])), exact(both)],
                        [name, seed, "ASHA", percent(saved(asha)), percent(regret(asha, final_of, w["best"])), exact(asha)],
                        [name, seed, f"{kept} at random, mean (95 %)", percent(1 - KEEP), f"{percent(mean)} ({percent(high)})", "-"]]
            if default:
                quality.append([name, seed, "PEFT's defaults", "-", percent(default["jobs"][0]["best"] / w["best"] - 1), exact(default)])
            alone, alone_exit = seconds_alone(out, name, whole["jobs"]), seconds_alone(out, name, both["jobs"])
            if alone is None:
                continue
            rows = {"sequential (extrapolated)": (alone, math.nan), "early exit (extrapolated)": (alone_exit, math.nan),
                    "batching": (whole["seconds"], whole["evaluation_seconds"]),
                    "batching and early exit": (both["seconds"], both["evaluation_seconds"])}
            for arm, (seconds, evaluation) in rows.items():
                speed.append([name, seed, arm, f"{seconds:.1f}", "-" if math.isnan(evaluation) else f"{evaluation:.1f}",
                              f"{alone / seconds:.2f}"])
            summary.append(alone / both["seconds"])
    text = "### Is the search worth it\n\n" + markdown(
        ["task", "seed", "jobs", "best loss", "median above it", "diverging", "overfitting", "underperforming", "done",
         "Spearman, 5 % and final", "top quarter covered"], worth)
    text += "\n\n### Quality\n\n" + markdown(["task", "seed", "policy", "samples saved", "regret", "exact match"], quality)
    text += "\n\n### Time\n\n" + markdown(["task", "seed", "arm", "seconds", "of it evaluation", "over sequential"], speed)
    if summary:
        text += f"\n\nAll levers over sequential (extrapolated; its steps are recorded as CUDA graphs where lengths repeat, and captures count): median {statistics.median(summary):.1f}.\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/pretrain_gpu")
    parser.add_argument("--out", default="runs/grid")
    parser.add_argument("--binary", default=str(ROOT / "build/release/bin/trireme"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--time-steps", type=int, default=200)
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds")
    parser.add_argument("--tables", action="store_true", help="of what is there; run nothing")
    parser.add_argument("override", nargs="*", help="key=value of every sweep")
    options = parser.parse_args()
    if not options.tables:
        run_all(options)
    text = tables(options)
    print(text)
    (Path(options.out) / "tables.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The grid of a LoRA sweep: 5 learning rates x 3 ranks x 4 batch sizes, with and without early exit.

  trireme train recipes/lora_sweep/pretrain_gpu.yaml                                   # the backbone, once
  python3 bench/studies/lora_grid.py --model runs/pretrain_gpu --out runs/grid --device cuda --gpus 2 --at-once 4
  python3 bench/studies/lora_grid.py --tables --out runs/grid                          # of what is there
  python3 bench/studies/lora_grid.py --self-test

Runs in full, of every seed: all jobs batched to their ends (exhaustive); batched with early exit; batched with ASHA;
PEFT's defaults alone. Seed 1's first two are timed, alone on their card; --at-once others share one. One job at a time is
extrapolated: of every rank and batch size --time-steps steps of samples of one length, the median's, are timed (so that
every step is recorded), times the steps that were counted. Beside them the full model is trained at a tenth of every
rate: the job of rank 32 and batch size 4 at ten times its best rate is what needs no search. The rates are the paper's
(1e-5 to 5e-4) times 20, since the backbone is small; PEFT's quick tour trains at 1e-3. Chosen before the first run. Every
task that is done is kept: the same command goes on with the others, also elsewhere, where --out was brought along.
"""
import argparse
import contextlib
import json
import math
import os
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
    """A sweep file, which JSON is too. The backbone was trained on problems of seed 1."""
    tasks = {name: task(level, options.samples, options.held_out, options.test) for name, level in LEVELS.items()}
    return {"recipe": "lora_sweep", "model": str(Path(options.model).resolve()), "seed": 100 + seed, "device": options.device,
            "precision": precision(options), "lora": {"targets": TARGETS},
            "search": {"lr": RATES, "rank": RANKS, "batch_size": BATCHES, "alpha": "2r"}, "train": {"epochs": EPOCHS},
            "early_exit": early | {"val_cap": VALIDATION}, "checkpoint": {"every": 0}, "tasks": tasks} | more


def precision(options):
    return "bf16" if options.device == "cuda" else "f32"


def problems(options, level, count):
    """A task's problems, as trireme data writes them."""
    file = Path(options.out) / f"problems_{level}_{count}.jsonl"
    if not file.exists():
        subprocess.run([str(options.binary), "data", "arithmetic", "--level", str(level), "--problems", str(count), "--seed",
                        "101", "--out", str(file)], check=True, capture_output=True)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def words(problem):
    return problem["instruction"] + "\n" + problem["output"]


def one_length(options, name, batch):
    """The median problem, as often as `time_steps` steps take it."""
    all_of = sorted(problems(options, LEVELS[name], options.samples), key=lambda p: len(words(p)))
    file = Path(options.out) / f"median_{name}_b{batch}.jsonl"
    file.write_text((json.dumps(all_of[len(all_of) // 2]) + "\n") * (options.time_steps * batch), encoding="utf-8")
    return str(file.resolve())


def one_at_a_time(options):
    """Every shape by itself."""
    tasks = {}
    for name in LEVELS:
        for b in BATCHES:
            data = one_length(options, name, b)
            tasks[f"{name}_b{b}"] = {"data": data, "validation": one_length(options, name, 1), "length": 128, "template": "plain",
                                     "search": {"lr": [2e-4], "rank": RANKS, "batch_size": [b], "alpha": "2r"}}
    return sweep(options, 1, {"enabled": False, "eval_fraction": 1}, tasks=tasks, train={"epochs": 1}, execution={"arm": "sequential"})


class Sweep:
    """trireme sweep; done once every task has its result."""

    def __init__(self, name, content, timed=False):
        self.name, self.content, self.timed = name, content, timed

    def is_done(self, out):
        return all((out / self.name / t / "result.json").exists() for t in self.content["tasks"])

    def command(self, options, out):
        file = out / (self.name + ".yaml")
        file.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        return [str(options.binary), "sweep", str(file), "--out", str(out / self.name), *options.override]

    def predicted(self):
        """Seconds on an H200: 17 ms a pass that is not recorded, 4 ms one that is, 10 to begin."""
        tasks, epochs, search = self.content["tasks"].values(), self.content["train"]["epochs"], self.content["search"]
        if self.name == "sequential":
            return 10 + sum(0.004 * 3 * len(Path(t["data"]).read_text().splitlines()) / t["search"]["batch_size"][0] for t in tasks)
        return 10 + sum(0.017 * 1.3 * epochs * t["train"] / min(search["batch_size"]) for t in tasks)


class Full:
    """The whole model on a task's problems, packed text whose every token counts, at one rate."""
    timed = False

    def __init__(self, options, name, rate):
        self.name, self.task, self.rate, self.options = full_name(name, rate), name, rate, options

    def is_done(self, out):
        return full_loss(out, self.task, self.rate) is not None

    def command(self, options, out):
        text, model = out / f"full_{self.task}.txt", out / "backbone_hf"
        if not model.exists():
            subprocess.run([str(options.binary), "export", options.model, "--format", "hf", "--out", str(model)], check=True,
                           capture_output=True)
        text.write_text("\n\n".join(words(p) for p in problems(options, LEVELS[self.task], options.samples + options.held_out)) + "\n",
                        encoding="utf-8")
        share = options.held_out / (options.samples + options.held_out)
        return [str(options.binary), "train", str(Path(options.model) / "config.resolved.yaml"), f"init_from={options.model}",
                f"text.sources=[{text.resolve()}]", f"text.tokenizer={model.resolve()}", "text.length=128", f"text.held_out={share}",
                f"epochs={EPOCHS}", "batch_size=4", f"optimizer.lr={self.rate}", "optimizer.warmup=0",
                "optimizer.schedule=const", "eval_every=0", "checkpoint.every=0", "checkpoint.best=false", "log_every=50",
                f"device={options.device}", f"precision={precision(options)}", "--out", str(out / self.name), "--fresh"]

    def predicted(self):
        return 12


def full_name(name, rate):
    return f"full_{name}_{rate:g}"


def full_loss(out, name, rate):
    """Held-out loss at the end; none: there is no such run."""
    with contextlib.suppress(FileNotFoundError):
        lines = (Path(out) / (full_name(name, rate) + ".log")).read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith("done:"):
                return [float(w[5:]) for w in line.split() if w.startswith("loss=")][-1]
    return None


def runs_of(options):
    """In the order of their worth, if time ends."""
    runs = []
    for seed in range(1, options.seeds + 1):
        runs += [Sweep(f"both_{seed}", sweep(options, seed, EARLY), seed == 1),
                 Sweep(f"exhaustive_{seed}", sweep(options, seed, {"enabled": False}), seed == 1)]
        if seed == 1:
            runs.append(Sweep("sequential", one_at_a_time(options), True))
        runs += [Sweep(f"default_{seed}", sweep(options, seed, {"enabled": False},
                                                search={"lr": [1e-3], "rank": [8], "batch_size": [8], "alpha": "r"})),
                 Sweep(f"asha_{seed}", sweep(options, seed, {"cut": "asha"}))]
        if seed == 1:
            runs += [Full(options, name, rate / 10) for name in LEVELS for rate in RATES]
    return runs


def fits(run, beside, options):
    return not beside or (not run.timed and not any(r.timed for r in beside) and len(beside) < options.at_once)


def run_all(options):
    out = Path(options.out)
    waiting = [r for r in runs_of(options) if not r.is_done(out)]
    print(f"{len(waiting)} runs, predicted on H200s: {sum(r.predicted() for r in waiting):.0f} s one after the other", flush=True)
    cards = list(range(max(1, options.gpus)))
    running, end = {}, time.monotonic() + options.time_limit
    while waiting or running:
        for process in [p for p in running if p.poll() is not None]:
            run, _, begin = running.pop(process)
            print(f"{run.name}: {time.monotonic() - begin:.1f} s (predicted {run.predicted():.0f}), exit {process.returncode}", flush=True)
        if time.monotonic() > end:
            print("no time left:", *[r.name for r, _, _ in running.values()], *[r.name for r in waiting], flush=True)
            return stop(running)
        for card in cards:
            beside = [r for r, c, _ in running.values() if c == card]
            run = next((r for r in waiting if fits(r, beside, options)), None)
            if run:
                waiting.remove(run)
                running[start(run, card, options, out)] = (run, card, time.monotonic())
        time.sleep(0.1)


def start(run, card, options, out):
    env = dict(os.environ, CUDA_VISIBLE_DEVICES=str(card)) if options.gpus else None
    with open(out / (run.name + ".log"), "w", encoding="utf-8") as log:
        return subprocess.Popen(run.command(options, out), stdout=log, stderr=subprocess.STDOUT, env=env)


def stop(running):
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()


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


def full_rate(out, name):
    """Ten times the rate at which the full model learns best; none: not all of them have run."""
    losses = {rate: full_loss(out, name, rate / 10) for rate in RATES}
    return None if None in losses.values() else min(losses, key=losses.get)


def quality_of(out, seed, name, whole, both, w):
    """Rows, and {policy: regret}."""
    asha, default = result(out, f"asha_{seed}", name), result(out, f"default_{seed}", name)
    final_of = {key(j): f for j, f in zip(whole["jobs"], w["final"])}
    kept = math.ceil(KEEP * w["jobs"])
    mean, high = random_regret(w["final"], kept)
    saved = lambda r: 1 - r["samples"] / r["all_samples"] if r else math.nan
    exact = lambda r: percent(r.get("exact_match") if r and r.get("exact_match") is not None else math.nan, 1)
    regrets = {"early exit": regret(both, final_of, w["best"]), "ASHA": regret(asha, final_of, w["best"]), "random": mean}
    rows = [["exhaustive", "0 %", "0 %", exact(whole)],
            ["early exit", percent(saved(both)), percent(regrets["early exit"]), exact(both)],
            ["ASHA", percent(saved(asha)), percent(regrets["ASHA"]), exact(asha)],
            [f"{kept} at random, mean (95 %)", percent(1 - KEEP), f"{percent(mean)} ({percent(high)})", "-"]]
    if (rate := full_rate(out, name)) is not None:
        regrets["ten times"] = final_of[rate, 32, 4] / w["best"] - 1
        rows.append([f"one job, rank 32, batch 4, {rate:g}: ten times full finetuning's best rate", "-", percent(regrets["ten times"]), "-"])
    if default:
        regrets["PEFT"] = default["jobs"][0]["best"] / w["best"] - 1
        rows.append(["PEFT's defaults", "-", percent(regrets["PEFT"]), exact(default)])
    return [[name, seed, *row] for row in rows], regrets | {"saved": saved(both)}


def speed_of(out, name, whole, both):
    """Rows of the seed that is timed, and {lever: factor}."""
    alone, alone_exit = seconds_alone(out, name, whole["jobs"]), seconds_alone(out, name, both["jobs"])
    if alone is None:
        return [], {}
    rows = {"sequential (extrapolated)": (alone, math.nan), "early exit (extrapolated)": (alone_exit, math.nan),
            "batching": (whole["seconds"], whole["evaluation_seconds"]),
            "batching and early exit": (both["seconds"], both["evaluation_seconds"])}
    table = [[name, arm, f"{seconds:.1f}", "-" if math.isnan(evaluation) else f"{evaluation:.1f}", f"{alone / seconds:.2f}"]
             for arm, (seconds, evaluation) in rows.items()]
    return table, {"early exit": alone / alone_exit, "batching": alone / whole["seconds"], "all levers": alone / both["seconds"]}


def asked(regrets, ends, above, factors):
    """What was asked for, and what came."""
    of = lambda policy: [r[policy] for r in regrets if policy in r and not math.isnan(r[policy])]
    middle = lambda policy: percent(statistics.median(of(policy))) if of(policy) else "-"
    exits = of("early exit") or [math.nan]
    lines = [f"- Regret of {len(of('early exit'))} winners by early exit: median {middle('early exit')} (asked: at most 0.2 %), worst "
             f"{percent(max(exits))}. Median of a random quarter kept {middle('random')}, of ASHA {middle('ASHA')}, of one job at ten "
             f"times full finetuning's rate {middle('ten times')}, of PEFT's defaults {middle('PEFT')}.",
             f"- Samples saved: {percent(min(of('saved')))} to {percent(max(of('saved')))} (asked 72 %).",
             f"- Worth searching: median loss above the best at least {percent(min(above), 1)} (asked 5 %), diverging at least "
             f"{min(e['diverging'] for e in ends)}, overfitting at least {min(e['overfitting'] for e in ends)} (asked 3 and 3)."]
    for lever in ("early exit", "batching", "all levers"):
        if found := [f[lever] for f in factors if f]:
            lines.append(f"- {lever} over one job at a time: {', '.join(f'{v:.2f}' for v in found)}" +
                         (" (asked 13.8)." if lever == "all levers" else "."))
    return "\n".join(lines)


def tables(options):
    out, worth, quality, speed = options.out, [], [], []
    regrets, all_ends, above, factors = [], [], [], []
    for seed in range(1, options.seeds + 1):
        for name in LEVELS:
            whole, both = result(out, f"exhaustive_{seed}", name), result(out, f"both_{seed}", name)
            if whole is None or both is None:
                continue
            w = search_worth(out, seed, name)
            ends = {e: sum(j["end"] == e for j in both["jobs"]) for e in ("diverging", "overfitting", "underperforming", "done")}
            worth.append([name, seed, w["jobs"], f"{w['best']:.4f}", percent(w["median_above"], 1), *ends.values(),
                          f"{w['spearman']:.2f}", percent(w["coverage"], 0)])
            rows, found = quality_of(out, seed, name, whole, both, w)
            quality += rows
            regrets.append(found), all_ends.append(ends), above.append(w["median_above"])
            if seed == 1:
                rows, levers = speed_of(out, name, whole, both)
                speed += rows
                factors.append(levers)
    if not worth:
        return "no seed has both its runs to the end and its runs with early exit yet\n"
    text = "### Is the search worth it\n\n" + markdown(
        ["task", "seed", "jobs", "best loss", "median above it", "diverging", "overfitting", "underperforming", "done",
         "Spearman, 5 % and final", "top quarter covered"], worth)
    text += "\n\n### Quality\n\n" + markdown(["task", "seed", "policy", "samples saved", "regret", "exact match"], quality)
    text += "\n\n### Time (seed 1)\n\n" + markdown(["task", "arm", "seconds", "of it evaluation", "over sequential"], speed)
    return text + "\n\n### Asked\n\n" + asked(regrets, all_ends, above, factors) + "\n"


def self_test():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == 1 and spearman([1, 2, 3], [3, 2, 1]) == -1
    assert random_regret([1.0, 1.0, 1.0], 1, draws=20) == (0, 0)
    mean, high = random_regret([1.0, 2.0], 1, draws=2000)
    assert abs(mean - 0.5) < 0.05 and high == 1

    class Timed:
        timed = True

    class Other:
        timed = False
    two = argparse.Namespace(at_once=2)
    assert fits(Timed, [], two) and not fits(Timed, [Other], two) and not fits(Other, [Timed], two)
    assert fits(Other, [Other], two) and not fits(Other, [Other, Other], two)
    print("lora_grid: self-test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/pretrain_gpu")
    parser.add_argument("--out", default="runs/grid")
    parser.add_argument("--binary", default=str(ROOT / "build/release/bin/trireme"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--gpus", type=int, default=0, help="cards to use, 0: leave that to the program")
    parser.add_argument("--at-once", type=int, default=1, help="runs that share a card, but for those that are timed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--time-steps", type=int, default=600, help="200 would charge too much for recording")
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds")
    parser.add_argument("--tables", action="store_true", help="of what is there; run nothing")
    parser.add_argument("override", nargs="*", help="key=value of every sweep")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    if not options.tables:
        run_all(options)
    text = tables(options)
    print(text)
    (Path(options.out) / "tables.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The grid of a LoRA sweep: 5 learning rates x 3 ranks x 4 batch sizes, with and without early exit.

  trireme train recipes/lora_sweep/pretrain_gpu.yaml text.arithmetic=3000              # the backbone, once
  python3 bench/studies/lora_grid.py --probe --model runs/pretrain_gpu --out runs/grid --device cuda    # is it worth it?
  python3 bench/studies/lora_grid.py --model runs/pretrain_gpu --out runs/grid --device cuda --gpus 2 --at-once 4
  python3 bench/studies/lora_grid.py --tables --out runs/grid                          # of what is there
  python3 bench/studies/lora_grid.py --self-test

Runs in full, of every seed: all jobs batched to their ends (exhaustive); batched with early exit; with its cut alone, without
detectors; with ASHA; PEFT's defaults alone. The first seed's first two are timed, alone on their card; --at-once others share one. One job at a time is
extrapolated: of every rank and batch size --time-steps steps of samples of one length, the median's, are timed (so that
every step is recorded), times the steps that were counted. Beside them the full model is trained at a tenth of every
rate: the job of rank 32 and batch size 4 at ten times its best rate is what needs no search. The rates are the paper's
(1e-5 to 5e-4) times 20, since the backbone is small; PEFT's quick tour trains at 1e-3. Chosen before the first run. Every
task that is done is kept: the same command goes on with the others, also elsewhere, where --out was brought along.

The backbone's arithmetic was chosen after the first run: one that has seen 200,000 problems (the recipe's number) answers
both tasks before any step, at losses of 1e-5 among which regret says nothing. --probe runs PEFT's defaults alone and says
whether their exact match lies between 30 and 90 %; if not, make the backbone anew with half or twice the problems, before
any policy runs.

EXIT's window and gap were chosen after the first run whose losses told policies apart, on the curves of its seeds 1 and
2 by lora_grid_replay.py (seed 3 stood beside); seeds 4 to 6 ran with them and the paper's patience of 2, and lost four
winners of six to detectors. The cut alone lost none of these twelve, replayed: so it is an arm since. Patience and the
share kept (of 60 jobs 14: the cut alone then saves 72.75 % and not 71.25) were chosen on the curves of seeds 4 to 6, so a
run begins at seed 7. Why the paper's window of 2 and gap of 0.1 end the best jobs there:
docs/results/2026-11-28-issue-15.md. They are replayed beside.
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lora_grid_replay import best_of, exits, ordered
from lora_grid_tables import (BATCHES, CUT, EXIT, LEVELS, RANKS, RATES, figures, full_loss, full_name, probed, random_regret, spearman, tables,
                              told_apart)
from study import ROOT

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EPOCHS = 3
VALIDATION = 32  # samples of every evaluation: at 1 % of the steps as much work as the training


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
    file = Path(options.out) / f"problems_{level}_{count}_{options.seeds[0]}.jsonl"
    if not file.exists():
        subprocess.run([str(options.binary), "data", "arithmetic", "--level", str(level), "--problems", str(count), "--seed",
                        str(100 + options.seeds[0]), "--out", str(file)], check=True, capture_output=True)
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
    return sweep(options, options.seeds[0], {"enabled": False, "eval_fraction": 1}, tasks=tasks, train={"epochs": 1},
                 execution={"arm": "sequential"})


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
        """Seconds on an H200: 12 ms a pass with its evaluations, 4 where jobs leave, 2 alone; 13 to begin and to answer."""
        tasks, epochs, search = self.content["tasks"].values(), self.content["train"]["epochs"], self.content["search"]
        if self.name == "sequential":
            return 13 + sum(0.002 * 3 * len(Path(t["data"]).read_text().splitlines()) / t["search"]["batch_size"][0] for t in tasks)
        each = 0.004 if self.content["early_exit"].get("enabled", True) else 0.012
        return 13 + sum(each * epochs * t["train"] / min(search["batch_size"]) for t in tasks)


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


def runs_of(options):
    """In the order of their worth, if time ends."""
    if options.probe:
        return [default(options, options.seeds[0])]
    runs = []
    for seed in options.seeds:
        first = seed == options.seeds[0]
        runs += [Sweep(f"both_{seed}", sweep(options, seed, EXIT), first),
                 Sweep(f"exhaustive_{seed}", sweep(options, seed, {"enabled": False}), first),
                 Sweep(f"cut_{seed}", sweep(options, seed, CUT))]
        if first:
            runs.append(Sweep("sequential", one_at_a_time(options), True))
        runs += [default(options, seed),
                 Sweep(f"asha_{seed}", sweep(options, seed, EXIT | {"cut": "asha"}))]
        if first:
            runs += [Full(options, name, rate / 10) for name in LEVELS for rate in RATES]
    return runs


def default(options, seed):
    """PEFT's."""
    return Sweep(f"default_{seed}", sweep(options, seed, {"enabled": False},
                                          search={"lr": [1e-3], "rank": [8], "batch_size": [8], "alpha": "r"}))


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
    assert figures(1.23456e-5) == "1.23e-05" and figures(0.25) == "0.25"
    assert told_apart([0.1, 0.2], [0.5]).count("yes") == 2 and told_apart([1e-5], [1.0]).count("no") == 2
    head = {"total_steps": {"a": 100, "b": 100}}
    rows = [{"job": "a", "step": 5, "val_loss": 3.0}, {"job": "a", "step": 6, "val_loss": 1.0}, {"job": "b", "step": 5, "val_loss": None}]
    assert [(r["job"], r["step"]) for r in ordered(head, rows, 0.05)] == [("a", 5), ("b", 5), ("a", 6)]
    decided = [{"job": job, "step": step, "decision": end}
               for job, step, end in (("a", 5, "kept"), ("a", 6, "overfitting"), ("b", 5, "diverging"))]
    assert exits(head, decided) == {"a": ("overfitting", 6), "b": ("diverging", 5)}
    assert exits(head, []) == {"a": ("done", 100), "b": ("done", 100)}
    assert best_of(rows, "a", 5) == 3 and best_of(rows, "a", 6) == 1 and best_of(rows, "b", 5) == float("inf")
    print("lora_grid: self-test passed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/pretrain_gpu")
    parser.add_argument("--out", default="runs/grid")
    parser.add_argument("--binary", default=str(ROOT / "build/release/bin/trireme"))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--gpus", type=int, default=0, help="cards to use, 0: leave that to the program")
    parser.add_argument("--at-once", type=int, default=1, help="runs that share a card, but for those that are timed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7, 8, 9], help="the first is timed")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--time-steps", type=int, default=600, help="200 would charge too much for recording")
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds")
    parser.add_argument("--tables", action="store_true", help="of what is there; run nothing")
    parser.add_argument("--probe", action="store_true", help="PEFT's defaults alone: is this backbone worth a grid?")
    parser.add_argument("override", nargs="*", help="key=value of every sweep")
    parser.add_argument("--self-test", action="store_true")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    if not options.tables:
        run_all(options)
    if options.probe:
        return print(probed(options))
    text = tables(options)
    print(text)
    (Path(options.out) / "tables.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

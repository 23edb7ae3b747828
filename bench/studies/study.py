#!/usr/bin/env python3
"""Many small trainings at once, and what they say: seeds, paired differences, Student's t.

A study (fastclip.py, drrho.py beside this) is a list of Run and a function that makes tables of their results. The same
command again resumes runs that were cut and keeps those that are done.
  python3 bench/studies/study.py --self-test
"""
import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]

# ---- statistics

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131]


def interval(differences):
    """Mean and half of the 95 % interval; none (NaN) for fewer than two."""
    n = len(differences)
    mean = sum(differences) / n if n else math.nan
    half = T[n - 2] * statistics.stdev(differences) / math.sqrt(n) if 2 <= n <= len(T) + 1 else math.nan
    return mean, half


def verdict(mean, half):
    """Of "above": held and not held where the interval leaves 0 out."""
    if math.isnan(mean) or math.isnan(half):
        return "-"
    return "held" if mean - half > 0 else "not held" if mean + half < 0 else "undecided"


def paired(arm, other):
    """Of two {seed: value}: differences of the seeds that both have."""
    return [arm[s] - other[s] for s in sorted(arm) if s in other]


def samples_to(curve, target):
    """First number of samples at which a curve of (samples, score) reaches the target, between points linearly."""
    before = (0, 0.0)
    for point in curve:
        if point[1] >= target:
            share = (target - before[1]) / (point[1] - before[1]) if point[1] > before[1] else 1
            return before[0] + max(0.0, share) * (point[0] - before[0])
        before = point
    return math.inf


# ---- runs


@dataclass
class Run:
    """One `trireme train YAML OVERRIDES --out DIR/NAME`. `after`: runs that come first; then overrides may be a function
    of their results by name (none of one that failed), which returns None where they leave nothing to run."""

    name: str
    yaml: str
    overrides: list[str] | Callable
    after: list[str] = field(default_factory=list)


def results_of(folder):
    """{"eval": {metric: [(step, value)]}, "last": {key: value}} from metrics.jsonl."""
    curves, last = {}, {}
    with contextlib.suppress(FileNotFoundError), open(folder / "metrics.jsonl", encoding="utf-8") as lines:
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # a line that a killed run was writing
                record = json.loads(line)
                for key, value in record.items():
                    if value is None or key == "step":
                        continue
                    if key.startswith("eval/"):
                        curves.setdefault(key[5:], {})[record["step"]] = value
                    else:
                        last[key] = value
    return {"eval": {k: sorted(v.items()) for k, v in curves.items()}, "last": last}


def is_done(log, command):
    with contextlib.suppress(FileNotFoundError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return bool(lines) and lines[0] == command and any(line.startswith("done:") for line in lines)
    return False


class Slots:
    """Where runs go: each slot has its GPU and its share of the cores."""

    def __init__(self, jobs, gpus):
        cores = sorted(os.sched_getaffinity(0))
        self.free = list(range(jobs))[::-1]
        self.gpu = [str(k % gpus) if gpus else "" for k in range(jobs)]
        self.cores = [{cores[k % len(cores)]} for k in range(jobs)]
        self.threads = max(1, min(8, len(cores) // jobs))
        if jobs < len(cores):  # the scheduler knows better which are idle
            self.cores = [set(cores)] * jobs

    def environment(self, slot):
        env = dict(os.environ, OMP_NUM_THREADS="1")
        if self.gpu[slot]:  # first weights are drawn by all threads; then a GPU's host goes on with one
            env.update(CUDA_VISIBLE_DEVICES=self.gpu[slot], OMP_NUM_THREADS=str(self.threads))
        return env


@contextlib.contextmanager
def multi_process_service(wanted, folder, works):
    """NVIDIA MPS, under which kernels of several processes share a GPU at the same time: yields True where it could be
    started and `works()` says that a program runs under it."""
    places = {"CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"), "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps-log")}
    control = "nvidia-cuda-mps-control"
    started = False

    def end():
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run([control], input=b"quit\n", capture_output=True, timeout=20)
        for key in places:
            os.environ.pop(key, None)

    if wanted:
        for place in places.values():
            os.makedirs(place, exist_ok=True)
        os.environ.update(places)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            started = subprocess.run([control, "-d"], capture_output=True, timeout=20).returncode == 0 and works()
        if not started:
            end()
    try:
        yield started
    finally:
        if started:
            end()


class Queue:
    def __init__(self, runs, options):
        self.runs, self.options = runs, options
        self.out = Path(options.out)
        self.results, self.failed, self.cut = {}, {}, []
        self.have = json.loads(Path(options.have).read_text(encoding="utf-8"))["runs"] if options.have else {}
        self.begin = time.monotonic()

    def command(self, run):
        """None: see Run."""
        known = {name: self.results.get(name) for name in run.after}
        overrides = run.overrides(known) if callable(run.overrides) else run.overrides
        if overrides is None:
            return None
        values = dict(o.split("=", 1) for o in overrides + self.options.override)  # of equal keys the last counts
        program = [str(self.options.binary), "train", str(ROOT / run.yaml)]
        return program + [f"{key}={value}" for key, value in values.items()] + ["--out", str(self.out / run.name)]

    def start(self, run, slots):
        command = self.command(run)
        if command is None:
            self.failed[run.name] = "no run that chooses its settings has a score"
            print(f"  {run.name}: {self.failed[run.name]}", flush=True)
            return None
        log = self.out / (run.name + ".log")
        text = " ".join(command)
        if self.have.get(run.name, {}).get("command") == text:
            self.results[run.name] = self.have[run.name]
            return None
        if is_done(log, text):
            self.finish(run, 0, 0, text)
            return None
        log.parent.mkdir(parents=True, exist_ok=True)
        # Other settings than those of the folder: it starts anew.
        known = log.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0] if log.exists() else text
        file = open(log, "w", encoding="utf-8")
        file.write(text + "\n")
        file.flush()
        slot = slots.free.pop()
        process = subprocess.Popen(
            command + (["--fresh"] if known != text else []), stdout=file, stderr=subprocess.STDOUT,
            env=slots.environment(slot), preexec_fn=lambda: os.sched_setaffinity(0, slots.cores[slot]))
        return {"run": run, "process": process, "slot": slot, "log": log, "text": text, "begin": time.monotonic()}

    def finish(self, run, code, seconds, text):
        if code == 0:
            self.results[run.name] = dict(results_of(self.out / run.name), seconds=round(seconds, 1), command=text)
            with open(self.out / "results.jsonl", "a", encoding="utf-8") as lines:  # there if this process is killed
                lines.write(json.dumps({"run": run.name, **self.results[run.name]}) + "\n")
            if not any(run.name in other.after for other in self.runs):  # weights that nobody reads; ninety runs fill a disk
                shutil.rmtree(self.out / run.name / "ckpt", ignore_errors=True)
            return
        lines = [line for line in (self.out / (run.name + ".log")).read_text(errors="replace").splitlines() if line]
        why = f"exit {code}: {lines[-1][:200]}"
        if why not in self.failed.values():  # many may fail alike
            print(f"  {run.name}: {why}", flush=True)
        self.failed[run.name] = why

    def longest(self):
        """Seconds of the longest run so far."""
        return max((r["seconds"] for r in self.results.values()), default=0)

    def work(self):
        slots = Slots(self.options.jobs, self.options.gpus)
        waiting, running, told = list(self.runs), [], self.begin
        while waiting or running:
            now = time.monotonic()
            if now - self.begin > self.options.time_limit:
                self.stop(running)
                self.cut += [a["run"].name for a in running] + [r.name for r in waiting]
                return
            for a in [a for a in running if a["process"].poll() is not None]:
                running.remove(a)
                slots.free.append(a["slot"])
                self.finish(a["run"], a["process"].returncode, now - a["begin"], a["text"])
            late = self.begin + self.options.time_limit - now < self.longest()  # what is begun now would be cut
            if late and not running:
                self.cut += [r.name for r in waiting]
                return
            over = self.results.keys() | self.failed.keys()
            for run in [r for r in waiting if all(n in over for n in r.after)]:
                if late or not slots.free:
                    break
                waiting.remove(run)
                if started := self.start(run, slots):
                    running.append(started)
            if now - told > 60:
                told = now
                rounds = math.ceil(len(waiting) / self.options.jobs) + 1
                print(f"{now - self.begin:.0f} s: {len(self.results)} of {len(self.runs)} runs, {len(running)} at work; "
                      f"at most {rounds * self.longest():.0f} s to go by the longest run so far", flush=True)
            time.sleep(0.1)

    def works(self):
        """Two steps of the first run."""
        run = self.runs[0]
        values = run.overrides if isinstance(run.overrides, list) else []
        command = [str(self.options.binary), "train", str(ROOT / run.yaml), *values, "epochs=0", "steps=2", "eval_every=0", "device=cuda"]
        folder = self.out / "probe"
        return subprocess.run(command + ["--fresh", "--out", str(folder)], capture_output=True, timeout=60).returncode == 0

    @staticmethod
    def stop(running):
        for a in running:
            a["process"].send_signal(signal.SIGTERM)
        for a in running:
            try:
                a["process"].wait(timeout=15)
            except subprocess.TimeoutExpired:
                a["process"].kill()


# ---- tables


def prepared(name, options):
    """The file of one of the sets, and the arguments of `trireme data` that make it."""
    size = {"scenes": 12, "openclipart": 32}[name]
    file = f"{options.data}/{name}_{size}.h5"
    return file, ["data", name, *(["--pairs", "200000"] if name == "scenes" else []), "--size", str(size), "--out", file]


def device(options, large):
    """Steps of the smallest models are faster on a core than on a GPU, whose kernels the host has to start one by one."""
    return "device=cuda" if large and options.gpus else "device=cpu"


def markdown(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(c) for c in row) + " |" for row in rows])


def percent(value, digits=1):
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def score_of(result, metrics):
    """Mean of the metrics at the last evaluation; none of a run that is not there."""
    if not result or any(m not in result["eval"] for m in metrics):
        return None
    return sum(result["eval"][m][-1][1] for m in metrics) / len(metrics)


def curve_of(result, metrics, batch):
    """(samples, mean of the metrics) at every evaluation."""
    curves = [dict(result["eval"][m]) for m in metrics]
    return [(step * batch, sum(c[step] for c in curves) / len(curves)) for step in sorted(curves[0])]


def compare(by_arm, against, title="score", note=None):
    """Markdown and rows of {arm: {seed: score}}: mean, deviation over seeds, paired difference to the arm `against`."""
    rows, table = [], []
    for arm, scores in by_arm.items():
        values = list(scores.values())
        mean = sum(values) / len(values) if values else math.nan
        deviation = statistics.stdev(values) if len(values) > 1 else math.nan
        row = {"arm": arm, "scores": scores, "mean": mean, "deviation": deviation}
        text = ["", ""]
        if arm != against:
            difference, half = interval(paired(scores, by_arm.get(against, {})))
            row.update(difference=difference, half=half, above=verdict(difference, half))
            text = [f"{percent(difference)} ± {percent(half)}", row["above"]]
        rows.append(row)
        table.append([arm, " ".join(percent(v) for v in values), percent(mean), percent(deviation, 2), *text, *((note or {}).get(arm, []))])
    header = ["arm", f"{title} by seed", "mean", "sd", f"minus {against}, 95 %", f"above {against}"]
    return markdown(header + (["settings"] if note else []), table), rows


# ---- arms of one setting


@dataclass
class Arm:
    name: str
    overrides: list[str]
    grid: list[list[str]]  # the temperatures of the grid
    seeds: int
    rates: list[str] = field(default_factory=list)  # learning rates; none: those of the setting
    after: list[str] = field(default_factory=list)  # runs that it needs
    parts: list[str] = field(default_factory=list)  # beside those of the setting


@dataclass
class Setting:
    """Arms under the same conditions. Each takes the best of learning rates x temperatures by one run with `parts`, which
    trains on a part of the training captions and is evaluated on another; the runs of its seeds go without `parts`."""

    name: str
    yaml: str
    overrides: list[str]
    rates: list[str]
    arms: list[Arm]
    metrics: list[str]  # the score is their mean
    parts: list[str]
    against: str  # the arm that the others are compared with

    def tried(self, arm):
        """Runs that choose, by name: their point of the grid."""
        points = [[f"optimizer.lr={lr}", *t] for lr in arm.rates or self.rates for t in arm.grid]
        return {f"{self.name}/choose/{arm.name}-{k}": p for k, p in enumerate(points)} if len(points) > 1 else {"": points[0]}

    def run_name(self, arm, seed):
        return f"{self.name}/{arm.name}-{seed}"

    def runs(self):
        choose, count = [], []
        for arm in self.arms:
            tried = self.tried(arm)
            common = self.overrides + arm.overrides
            choose += [Run(n, self.yaml, common + p + self.parts + arm.parts + ["seed=1"], arm.after) for n, p in tried.items() if n]
            for seed in range(1, arm.seeds + 1):
                final = lambda results, c=common, t=tried, s=seed: self.chosen(c, t, results, [f"seed={s}"])
                count.append(Run(self.run_name(arm, seed), self.yaml, final, [n for n in tried if n] + arm.after))
        return choose, count

    def best(self, tried, results):
        """The point of the grid with the best score; None where no run of it has one."""
        if "" in tried:  # the only one
            return tried[""]
        scores = {name: score_of(results.get(name), self.metrics) for name in tried}
        known = [name for name in tried if scores[name] is not None]
        return tried[max(known, key=scores.get)] if known else None

    def chosen(self, common, tried, results, more):
        point = self.best(tried, results)
        return None if point is None else common + point + more

    def table(self, results):
        """Markdown and rows."""
        scores, notes, chosen = {}, {}, {}
        for arm in self.arms:
            found = {s: score_of(results.get(self.run_name(arm, s)), self.metrics) for s in range(1, arm.seeds + 1)}
            scores[arm.name] = {s: v for s, v in found.items() if v is not None}
            tried = self.tried(arm)
            point = self.best(tried, results) or []
            ends = [results[self.run_name(arm, s)]["last"].get("tau") for s in scores[arm.name]]
            notes[arm.name] = [" ".join(o.split(".", 1)[1] for o in point) + (f"; tau ends at {ends[0]:.3f}" if ends and ends[0] else "")]
            chosen[arm.name] = {"chosen": point, "grid": {n: score_of(results.get(n), self.metrics) for n in tried if n}}
        text, rows = compare(scores, self.against, "score", notes)
        rows = [dict(row, setting=self.name, **chosen[row["arm"]]) for row in rows]
        return f"**{self.name}** (score: mean of {' and '.join(self.metrics)}, %)\n\n{text}\n", rows


def runs_of_settings(settings):
    """Runs that choose first: the others wait for them."""
    pairs = [s.runs() for s in settings]
    return [run for choose, _ in pairs for run in choose] + [run for _, count in pairs for run in count]


# ---- command line


def main(parts, data_of, runs_of, tables_of, seconds_of=None, arguments=None):
    """data_of(part, options) -> [(file, arguments of trireme that make it)]; runs_of(part, options) -> [Run];
    tables_of(part, options, results) -> (Markdown, rows); seconds_of(part, options): predicted, of a run
    beside others, or None."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=parts)
    parser.add_argument("override", nargs="*", help="key=value for every run")
    parser.add_argument("--out", required=True, help="folder of the runs, results.json and results.md")
    parser.add_argument("--binary", default=ROOT / "build/release/bin/trireme")
    parser.add_argument("--data", default="data", help="folder of the prepared sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=max(1, len(os.sched_getaffinity(0)) - 1))
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--no-mps", action="store_true")
    parser.add_argument("--have", default="", help="results.json of an earlier call: its runs are not made again")
    parser.add_argument("--time-limit", type=float, default=1e9, help="seconds")
    parser.add_argument("--only", default="", help="arms to run, comma-separated")
    parser.add_argument("--list", action="store_true", help="print the runs and stop")
    options = parser.parse_intermixed_args(arguments)
    runs = runs_of(options.part, options)
    if options.list:
        print("\n".join(r.name + " " + ("(chosen)" if callable(r.overrides) else " ".join(r.overrides)) for r in runs))
        return 0
    Path(options.out).mkdir(parents=True, exist_ok=True)
    Path(options.data).mkdir(parents=True, exist_ok=True)
    for file, arguments in data_of(options.part, options):
        if not Path(file).exists():
            begin = time.monotonic()
            subprocess.run([str(options.binary), *arguments], check=True, capture_output=True)
            print(f"{file}: made in {time.monotonic() - begin:.0f} s", flush=True)
    if seconds := seconds_of and seconds_of(options.part, options):
        rounds = math.ceil(len(runs) / options.jobs)
        print(f"{len(runs)} runs, {options.jobs} at once: predicted {rounds * seconds:.0f} s", flush=True)
    queue = Queue(runs, options)
    with multi_process_service(options.gpus > 0 and not options.no_mps, Path(options.out).resolve(), queue.works) as shared:
        queue.work()
    text, rows = tables_of(options.part, options, queue.results)
    seconds = time.monotonic() - queue.begin
    end = f"{len(queue.results)} of {len(runs)} runs in {seconds:.0f} s, {options.jobs} at once on {options.gpus} GPUs, MPS {'on' if shared else 'off'}"
    end += f"; failed: {len(queue.failed)}; cut: {len(queue.cut)}"
    steps = [r["last"]["step_ms"] for r in queue.results.values() if "step_ms" in r["last"]]
    end += f"; {statistics.median(steps):.2f} ms a step (median of the runs' last)" if steps else ""
    document = {"part": options.part, "rows": rows, "runs": queue.results, "failed": queue.failed, "cut": queue.cut, "end": end}
    (Path(options.out) / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (Path(options.out) / "results.md").write_text(text + "\n\n" + end + "\n", encoding="utf-8")
    print(text + "\n" + end)
    return 1 if queue.failed or queue.cut else 0


def self_test():
    def near(a, b):
        assert abs(a - b) < 1e-3 * abs(b), (a, b)

    mean, half = interval([1.0, 2.0, 3.0])  # sd 1, sqrt(3): 4.303 / 1.732
    near(mean, 2), near(half, 2.4843)
    near(interval([0.5, 0.5, 0.8, 1.0])[1], 3.182 * 0.244949 / 2)
    assert math.isnan(interval([1.0])[1]) and math.isnan(interval([])[0])
    assert verdict(2, 2.48) == "undecided" and verdict(2, 1.9) == "held" and verdict(-2, 1.9) == "not held"
    assert verdict(1, math.nan) == "-"
    assert paired({1: 3.0, 2: 5.0, 3: 1.0}, {3: 4.0, 1: 1.0}) == [2.0, -3.0]
    assert samples_to([(100, 0.1), (200, 0.3), (300, 0.2)], 0.2) == 150
    assert samples_to([(100, 0.1)], 0.05) == 50 and samples_to([(100, 0.1)], 0.2) == math.inf
    text, rows = compare({"a": {1: 0.1, 2: 0.2, 3: 0.3}, "b": {1: 0.2, 2: 0.31, 3: 0.42}}, "a")
    near(rows[1]["difference"], 0.11), near(rows[1]["half"], 4.303 * 0.01 / math.sqrt(3))
    assert rows[1]["above"] == "held" and "| held |" in text
    arm = Arm("a", [], [["t=1"], ["t=2"]], 1, parts=["own"])
    setting = Setting("s", "x.yaml", ["all"], ["5"], [arm], ["m"], ["part"], "a")
    choose, count = setting.runs()
    assert [r.overrides for r in choose] == [["all", "optimizer.lr=5", f"t={k}", "part", "own", "seed=1"] for k in (1, 2)]
    zero = {"eval": {"m": [(1, 0.0)]}}
    assert count[0].overrides({choose[1].name: zero}) == ["all", "optimizer.lr=5", "t=2", "seed=1"]  # the other failed
    assert count[0].overrides({choose[0].name: None}) is None
    assert setting.table({})[1][0]["chosen"] == []
    print("study: ok")
    return 0


if __name__ == "__main__":
    sys.exit(self_test() if sys.argv[1:] == ["--self-test"] else __doc__)

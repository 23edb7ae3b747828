#!/usr/bin/env python3
"""Studies Q1 to Q3 of diffusion on a small model: all arms of recipes/{tide,sdit,supergen}/study.yaml, 3 sampling seeds.

  python3 bench/studies/dit.py run --out runs/dit --ranks 2 [--fit] [--only tide_2x,sdit] [--seconds 250] [key=value ...]
  python3 bench/studies/dit.py tables --out runs/dit                          of what is there
--fit finds the thresholds of TeaCache and SuperGen for the model first. Jobs start in the order of JOBS, --at-once side by side;
after --seconds they are told to stop: all arms of a job have then drawn the same prompts, up to a batch a rank. The same command
again goes on where each stopped, and leaves alone what is done.

What was expected was written into EXPECTED before the first run; each line is judged by paired differences over seeds.
"""
import argparse
import ctypes
import json
import os
import statistics
import signal
import subprocess
import sys
import time
from pathlib import Path

from study import interval, multi_process_service, verdict

ROOT = Path(__file__).resolve().parents[2]

# The first of each question come first: a run that is cut has them.
JOBS = {
    "tide_2x": ["recipes/tide/study.yaml", "batch=75"],
    "sdit": ["recipes/sdit/study.yaml"],
    "supergen_2x": ["recipes/supergen/study.yaml"],
    "tide_4x": ["recipes/tide/study.yaml", "size=[256, 256]", "held_out=100", "batch=25"],
    "supergen_4x": ["recipes/supergen/study_4x.yaml"],
    "sdit_g4": ["recipes/sdit/study.yaml", "guidance=4"],
    "sdit_caches": ["recipes/sdit/study_caches.yaml"],
}
FITS = {
    "fit_sdit": ["recipes/sdit/fit.yaml"],
    "fit_2x": ["recipes/supergen/fit.yaml"],
    "fit_4x": ["recipes/supergen/fit.yaml", "size=[256, 256]"],
}
FIT_OF = {"sdit": "fit_sdit", "sdit_g4": "fit_sdit", "sdit_caches": "fit_sdit", "supergen_2x": "fit_2x", "supergen_4x": "fit_4x"}

# job -> [(arm, other arm, metric, least difference)]: the first is above the second by at least so much.
EXPECTED = {
    "tide_2x": [
        ("native", "plain", "accuracy", 0.2),
        ("plain", "plain_linear", "accuracy", 0),
        ("yarn", "plain", "accuracy", 0),
        ("yarn", "bias", "accuracy", 0),
        ("yarn_bias", "yarn", "accuracy", 0),
        ("tide", "yarn_dype", "accuracy", 0),
        ("tide", "plain", "accuracy", 0.2),
        # Written later, after four prompts had shown that YaRN at 16 tokens a side repeats the object.
        ("pi_bias", "pi", "accuracy", 0),
        ("pi_bias", "plain", "accuracy", 0.2),
    ],
    "tide_4x": [
        ("plain", "plain_linear", "accuracy", 0),
        ("tide", "yarn_dype", "accuracy", 0),
        ("tide", "plain", "accuracy", 0.2),
        ("pi_bias", "pi", "accuracy", 0),
        ("pi_bias", "plain", "accuracy", 0.2),
    ],
    "sdit": [
        ("dense_60", "error_60", "psnr", 0),
        ("error_60", "random_60", "psnr", 0),
        ("random_60", "sdit_60", "psnr", 0),
        ("sdit_aging_60", "sdit_60", "psnr", 0),
        ("sdit_60", "ras_60", "psnr", 0),
        ("dense_33", "sdit_33", "psnr", 0),
        ("sdit_60", "dense", "accuracy", -0.05),
    ],
    "supergen_2x": [
        ("native", "plain", "accuracy", 0.2),
        ("shift", "no_sketch", "accuracy", 0),
        ("no_shift", "shift", "seam", 0),
        ("local", "extend", "accuracy", 0),
        ("reuse_30", "reuse_50", "psnr", 0),
        ("reuse_30", "release_gate", "psnr", 0),
        ("reuse_50", "shift", "accuracy", -0.02),
    ],
}
EXPECTED["sdit_g4"] = EXPECTED["sdit"]
# Written after 25 of these prompts, which said so.
EXPECTED["sdit_caches"] = [
    ("first_block_taylor_c", "first_block_c", "psnr", 0),
    ("first_block_c", "teacache_41", "psnr", 0),
    ("first_block_taylor_c", "dense", "accuracy", -0.05),
    ("teacache_33", "dense", "accuracy", -0.05),
]
EXPECTED["supergen_4x"] = [e for e in EXPECTED["supergen_2x"] if e[0] != "native"]
ALIAS = {"local": "shift"}  # the arm `shift` has local positions


def mean(values):
    values = [v for v in values if v is not None]
    return statistics.fmean(values) if values else None


def flat(report, key):
    """Of all pictures of an arm: the methods' per-picture lists, batch by batch."""
    values = []
    for batch in report["batches"]:
        v = batch["report"].get(key)
        values += v if isinstance(v, list) else [] if v is None else [v]
    return values


def row_of(arm):
    m = arm["metrics"]
    ran, steps = flat(arm, "computed_steps"), flat(arm, "steps")
    share = mean(flat(arm, "mean_share")) if flat(arm, "mean_share") else sum(ran) / sum(steps) if steps else None
    skips, seams = flat(arm, "skip_share"), flat(arm, "seam_ratios")
    return {
        "arm": arm["arm"],
        "pictures": len(arm["pictures"]),
        "accuracy": m.get("attribute_accuracy"),
        "seeds": arm.get("accuracy_by_seed", {}),
        "all right": m.get("all_right"),
        "duplicates": m.get("duplicates"),
        "missing": m.get("missing"),
        "IoU": m.get("mask_iou"),
        "spectrum": m.get("spectrum_distance"),
        "psnr": m.get("psnr"),
        "ssim": m.get("ssim"),
        "share": share,
        "caught": mean(flat(arm, "caught")),
        "at most": mean(flat(arm, "most")),
        "skipped": mean(skips) if skips else None,
        "longest skip": max(flat(arm, "longest_skip_run"), default=None),
        "seam": mean([s["fixed"] for s in seams]) if seams else None,
        "seam last": mean([s["last"] for s in seams]) if seams else None,
        "steps": arm["steps"],
        "seconds": arm["seconds"],
    }


COLUMNS = ["accuracy", "all right", "duplicates", "missing", "IoU", "spectrum", "psnr", "ssim", "share", "caught", "at most", "skipped",
           "longest skip", "seam", "seam last", "seconds"]
FORMAT = {"pictures": "{:.0f}", "psnr": "{:.1f}", "longest skip": "{:.0f}", "seconds": "{:.1f}"}


def load(folder):
    report = json.loads((folder / "report.json").read_text())
    return {arm["arm"]: row_of(arm) for arm in report["arms"]}, report["machine"]


def table(rows):
    shown = [c for c in COLUMNS if any(r[c] is not None for r in rows.values())]
    if len({r["pictures"] for r in rows.values()}) > 1:
        shown.insert(0, "pictures")
    lines = ["| arm | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for r in rows.values():
        cells = []
        for c in shown:
            text = "" if r[c] is None else FORMAT.get(c, "{:.3f}").format(r[c])
            if c == "accuracy" and len(r["seeds"]) > 1:
                text += " ± {:.3f}".format(statistics.stdev(r["seeds"].values()))
            cells.append(text)
        lines.append("| " + r["arm"] + " | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def judged(rows, expected):
    lines = []
    for a, b, metric, least in expected:
        x, y = rows.get(ALIAS.get(a, a)), rows.get(b)
        if not x or not y or x[metric] is None or y[metric] is None:
            continue
        difference, half = x[metric] - y[metric], float("nan")
        if metric == "accuracy":
            seeds = sorted(set(x["seeds"]) & set(y["seeds"]))
            _, half = interval([x["seeds"][s] - y["seeds"][s] for s in seeds])
        held = verdict(difference - least, 0 if half != half else half)
        spread = "" if half != half else f" ± {half:.3f}"
        lines.append(f"- {a} above {b}" + (f" by {least:g}" if least else "") +
                     f" ({metric}): {difference:+.3f}{spread}: {held}")
    return "\n".join(lines)


def tables(out):
    for job in JOBS:
        if not (out / job / "report.json").exists():
            continue
        rows, machine = load(out / job)
        first = next(iter(rows.values()))
        print(f"## {job}: {first['pictures']} pictures an arm, {machine['device']}, {machine['ranks']} ranks\n")
        print(table(rows) + "\n\nExpected before the run, and what came (± half of the 95 % interval over seeds):\n")
        print(judged(rows, EXPECTED[job]) + "\n")


def fitted(report, share):
    """Median over pictures of SuperGen's threshold that reuses this share."""
    arms = json.loads((report / "report.json").read_text())["arms"]
    curves = [c for arm in arms for b in arm["batches"] for c in b["report"].get("base_by_skip", [])]
    return statistics.median(c[share] for c in curves if share in c)


def from_fit(out, fit):
    """What a job gets on top, once its fit is done."""
    if fit == "fit_sdit":
        return [f"teacache.fit={out}/teacache.json"]
    low, high = (fitted(out / fit, share) for share in ("0.3", "0.5"))
    return [f"arms={{reuse_30: [supergen.cache.base={low}], reuse_50: [supergen.cache.base={high}], "
            f"reuse_max_min: [supergen.cache.base={low}, supergen.cache.mode=max_min_adjust], "
            f"release_gate: [supergen.cache.base={low}, supergen.cache.gate=release]}}"]


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Study:
    """Jobs and the fits they wait for, so many at once, until the time is up."""

    def __init__(self, o):
        self.o, self.out, self.running = o, o.out.resolve(), {}
        only = [n for n in o.only.split(",") if n]
        self.jobs = [n for n in JOBS if not only or n in only]
        self.waiting = [f for f in FITS if o.fit and f in {FIT_OF.get(n) for n in self.jobs}] + self.jobs
        self.over, self.failed = set(), []
        self.end = time.monotonic() + o.seconds

    def command(self, name):
        words = [self.o.trireme, "sample"]
        if name in FITS:
            words += FITS[name] + [w for w in self.o.overrides if w.split("=")[0] in ("model", "device", "precision")]
        else:
            words += JOBS[name] + self.o.overrides
            words += from_fit(self.out, FIT_OF[name]) if self.o.fit and name in FIT_OF else []
        if name == "fit_sdit":
            words.append(f"teacache_fit.file={self.out}/teacache.json")
        if "sdit" in name:  # distances to dense are smaller than bf16's noise
            words.append("precision=f32")
        ranks = ["--ranks", str(self.o.ranks)] if self.o.ranks > 1 and name in JOBS else []
        return words + ["--out", str(self.out / name)] + ranks

    def start(self, name):
        command, done = self.command(name), self.out / f"{name}.done"
        if done.exists() and done.read_text() == "\n".join(command):
            self.over.add(name)
            return
        begun = (self.out / name).exists() and name == "fit_sdit"  # its changes are kept in memory alone
        with open(self.out / f"{name}.log", "a") as log:
            # In a session of its own: who ends this group does not tell it to stop a second time, which would be at once.
            process = subprocess.Popen(command + (["--fresh"] if begun else []), cwd=ROOT, stdout=log, stderr=log,
                                       start_new_session=True, preexec_fn=end_with_parent)
        self.running[name] = (process, command)

    def collect(self):
        for name in [n for n, (process, _) in self.running.items() if process.poll() is not None]:
            process, command = self.running.pop(name)
            self.over.add(name)
            if process.returncode == 0:
                (self.out / f"{name}.done").write_text("\n".join(command))
            elif process.returncode != 85:  # that: it stopped as it was told
                self.failed.append(name)
                last = (self.out / f"{name}.log").read_text().strip().splitlines()[-1:]
                print(name, "failed:", *last, file=sys.stderr, flush=True)

    def fit_is_there(self, name):
        fit = FIT_OF.get(name)
        return not self.o.fit or fit is None or (fit in self.over and fit not in self.failed)

    def work(self):
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "end", 0))
        while self.waiting or self.running:
            self.collect()
            if time.monotonic() > self.end:
                return self.stop()
            for name in self.waiting[:]:
                if FIT_OF.get(name) in self.failed:
                    self.waiting.remove(name)
                elif name in FITS or (len(self.running.keys() - FITS.keys()) < self.o.at_once and self.fit_is_there(name)):
                    self.waiting.remove(name)
                    self.start(name)
            time.sleep(0.1)

    def stop(self):
        for process, _ in self.running.values():
            process.send_signal(signal.SIGTERM)
        for process, _ in self.running.values():
            try:
                process.wait(timeout=self.o.patience)
            except subprocess.TimeoutExpired:
                process.kill()
        print("time is up:", *self.running, *self.waiting, "are not done", file=sys.stderr)
        self.collect()

    def works(self):
        """Does the program run under MPS?"""
        words = ["recipes/sdit/fit.yaml", "method=plain", "held_out=1", "steps=2", "--out", str(self.out / "probe"), "--fresh"]
        return subprocess.run([self.o.trireme, "sample", *words], cwd=ROOT, capture_output=True, timeout=60).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "tables"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trireme", default=os.environ.get("TRIREME_BINARY", "trireme"))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9, help="then jobs are told to stop")
    parser.add_argument("--patience", type=float, default=60, help="seconds they have for their report")
    parser.add_argument("--mps", action="store_true", help="jobs share a GPU at the same time (NVIDIA MPS)")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("overrides", nargs="*")
    o = parser.parse_intermixed_args()
    if o.what == "tables":
        return tables(o.out)
    study = Study(o)
    study.out.mkdir(parents=True, exist_ok=True)
    with multi_process_service(o.mps, study.out, study.works):
        study.work()
    tables(o.out)
    return 1 if study.failed else 0


if __name__ == "__main__":
    sys.exit(main())

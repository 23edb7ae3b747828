#!/usr/bin/env python3
"""Studies Q1 to Q3 of diffusion on a small model: all arms of recipes/{tide,sdit,supergen}/study.yaml, 3 sampling seeds.

  python3 bench/studies/dit.py run --out runs/dit --ranks 4 [--fit] [--only tide_2x,sdit] [key=value ...]   side by side
  python3 bench/studies/dit.py tables --out runs/dit                          of what is there
--fit finds the thresholds of TeaCache and SuperGen for the model first.

What was expected was written into EXPECTED before the first run; each line is judged by paired differences over seeds.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from study import interval

ROOT = Path(__file__).resolve().parents[2]

JOBS = {
    "tide_2x": ["recipes/tide/study.yaml"],
    "tide_4x": ["recipes/tide/study.yaml", "size=[256, 256]", "held_out=100"],
    "sdit": ["recipes/sdit/study.yaml"],
    "sdit_g4": ["recipes/sdit/study.yaml", "guidance=4"],
    "supergen_2x": ["recipes/supergen/study.yaml"],
    "supergen_4x": ["recipes/supergen/study_4x.yaml"],
}

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
FORMAT = {"psnr": "{:.1f}", "longest skip": "{:.0f}", "seconds": "{:.1f}"}


def load(folder):
    report = json.loads((folder / "report.json").read_text())
    return {arm["arm"]: row_of(arm) for arm in report["arms"]}, report["machine"]


def table(rows):
    shown = [c for c in COLUMNS if any(r[c] is not None for r in rows.values())]
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
        held = "held" if difference >= least else "not held"
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


def fit(out, trireme, overrides):
    """Thresholds of TeaCache and SuperGen for the model: what the jobs get on top."""
    given = [w for w in overrides if w.split("=")[0] in ("model", "device", "precision")]
    runs = {
        "fit_sdit": ["recipes/sdit/fit.yaml", f"teacache_fit.file={out}/teacache.json"],
        "fit_2x": ["recipes/supergen/fit.yaml"],
        "fit_4x": ["recipes/supergen/fit.yaml", "size=[256, 256]"],
    }
    started = []
    for name, words in runs.items():
        log = open(out / f"{name}.log", "w")
        started.append(subprocess.Popen([trireme, "sample", *words, *given, "--out", str(out / name)], cwd=ROOT,
                                        stdout=log, stderr=subprocess.STDOUT))
    if any([job.wait() for job in started]):
        sys.exit(f"a fit failed: {out}/fit_*.log")
    on_top = {"sdit": [f"teacache.fit={out}/teacache.json"]}
    for side in ("2x", "4x"):
        low, high = (fitted(out / f"fit_{side}", share) for share in ("0.3", "0.5"))
        on_top[f"supergen_{side}"] = [
            f"arms={{reuse_30: [supergen.cache.base={low}], reuse_50: [supergen.cache.base={high}], "
            f"reuse_max_min: [supergen.cache.base={low}, supergen.cache.mode=max_min_adjust], "
            f"release_gate: [supergen.cache.base={low}, supergen.cache.gate=release]}}"
        ]
        print(f"supergen {side}: base {low:.4f} for 30 % reused, {high:.4f} for 50 %")
    on_top["sdit_g4"] = on_top["sdit"]
    return on_top


def run(out, trireme, ranks, only, overrides, on_top):
    out.mkdir(parents=True, exist_ok=True)
    jobs = {}
    for name, words in JOBS.items():
        if only and name not in only:
            continue
        exact = ["precision=f32"] if name.startswith("sdit") else []  # distances to dense are smaller than bf16's noise
        command = [trireme, "sample", *words, *overrides, *on_top.get(name, []), *exact, "--out", str(out / name)]
        if ranks > 1:
            command += ["--ranks", str(ranks)]
        log = open(out / f"{name}.log", "w")
        jobs[name] = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    failed = [name for name, job in jobs.items() if job.wait() != 0]
    for name in failed:
        print(name, "failed:", (out / f"{name}.log").read_text().strip().splitlines()[-1:], file=sys.stderr)
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "tables"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trireme", default=os.environ.get("TRIREME_BINARY", "trireme"))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("overrides", nargs="*")
    o = parser.parse_intermixed_args()
    if o.what == "tables":
        return tables(o.out)
    out = o.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    on_top = fit(out, o.trireme, o.overrides) if o.fit else {}
    return run(out, o.trireme, o.ranks, [n for n in o.only.split(",") if n], o.overrides, on_top)


if __name__ == "__main__":
    sys.exit(main())

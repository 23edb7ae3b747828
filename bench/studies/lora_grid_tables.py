"""What the runs of lora_grid.py say, read from their folder."""
import contextlib
import json
import math
import random
import statistics
from pathlib import Path

from lora_grid_replay import TASKS, regrets, replay
from study import markdown

RATES = [2e-4, 1e-3, 4e-3, 6e-3, 1e-2]
RANKS = [16, 32, 64]
BATCHES = [1, 2, 4, 8]
LEVELS = dict(zip(TASKS, (2, 3)))  # levels of arithmetic
WARMUP, KEEP = 0.05, 0.25
CUT = {"warmup_ratio": WARMUP, "keep_ratio": KEEP, "window": 1000}  # no detector ever speaks
EXIT = {"warmup_ratio": WARMUP, "keep_ratio": 0.22, "window": 10, "tau_gap": 3, "patience_div": 10, "patience_ovf": 20}


def figures(v):
    """Three significant digits."""
    return "-" if v is None or math.isnan(v) else f"{v:.3g}"


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
    began, early, final = [], [], []
    for job in whole["jobs"]:
        began.append(by_job[job["job"]][0][1])
        boundary = math.ceil(WARMUP * job["total_steps"] - 1e-9)
        early.append(next(v for step, v in by_job[job["job"]] if step >= boundary))
        final.append(job["best"] if job["best"] is not None else math.inf)
    best, quarter = min(final), len(final) // 4
    top = lambda v: set(sorted(range(len(v)), key=lambda i: v[i])[:quarter])
    return {"jobs": len(final), "best": best, "began": began[final.index(best)], "final": final,
            "median_above": statistics.median(final) / best - 1,
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


def both_ways(regret, best):
    """Over the best, and in losses."""
    return "-" if math.isnan(regret) else f"{percent(regret)} ({figures(regret * best)})"


def full_rate(out, name):
    """Ten times the rate at which the full model learns best; none: not all of them have run."""
    losses = {rate: full_loss(out, name, rate / 10) for rate in RATES}
    return None if None in losses.values() else min(losses, key=losses.get)


def own_regret(chosen, best):
    """Of the adapter that came out, whose run ended early. Other packs round otherwise: it may be below the best."""
    if chosen is None or chosen["winner"] < 0:
        return math.nan
    return chosen["jobs"][chosen["winner"]]["best"] / best - 1


def quality_of(options, seed, name, whole, both, w):
    """Rows, and {policy: regret}."""
    out = options.out
    cut, asha, default = (result(out, f"{policy}_{seed}", name) for policy in ("cut", "asha", "default"))
    final_of = {key(j): f for j, f in zip(whole["jobs"], w["final"])}
    kept = math.ceil(KEEP * w["jobs"])
    mean, high = random_regret(w["final"], kept)
    saved = lambda r: 1 - r["samples"] / r["all_samples"] if r else math.nan
    exact = lambda r: percent(r.get("exact_match") if r and r.get("exact_match") is not None else math.nan, 1)
    paper = replay(out, seed, name, {"warmup_ratio": WARMUP, "keep_ratio": KEEP}, str(options.binary))
    of_paper, paper_own = regrets(out, seed, name, paper)
    found = {"early exit": regret(both, final_of, w["best"]), "cut": regret(cut, final_of, w["best"]), "ASHA": regret(asha, final_of, w["best"]), "random": mean,
             "own": own_regret(both, w["best"]), "paper": of_paper, "paper own": paper_own}
    rows = [["exhaustive", "0 %", "0 %", "0 %", exact(whole)],
            ["early exit", percent(saved(both)), both_ways(found["early exit"], w["best"]), percent(found["own"]), exact(both)],
            ["the paper's early exit (replayed)", percent(paper["saved"]), both_ways(of_paper, w["best"]), percent(paper_own), "-"],
            ["the cut alone", percent(saved(cut)), both_ways(found["cut"], w["best"]), percent(own_regret(cut, w["best"])), exact(cut)],
            ["ASHA", percent(saved(asha)), both_ways(found["ASHA"], w["best"]), percent(own_regret(asha, w["best"])), exact(asha)],
            [f"{kept} at random, mean", percent(1 - KEEP), both_ways(mean, w["best"]), "-", "-"],
            [f"{kept} at random, 95 %", percent(1 - KEEP), both_ways(high, w["best"]), "-", "-"]]
    if (rate := full_rate(out, name)) is not None:
        found["ten times"] = final_of[rate, 32, 4] / w["best"] - 1
        rows.append([f"one job, rank 32, batch 4, {rate:g}: ten times full finetuning's best rate", "-",
                     both_ways(found["ten times"], w["best"]), "-", "-"])
    if default:
        found["PEFT"] = default["jobs"][0]["best"] / w["best"] - 1
        rows.append(["PEFT's defaults", "-", both_ways(found["PEFT"], w["best"]), percent(found["PEFT"]), exact(default)])
    answered = [r["exact_match"] for r in (whole, both) if r.get("exact_match") is not None]
    return [[name, seed, *row] for row in rows], found | {"saved": saved(both), "best": w["best"], "answered": answered}


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


# Where the tasks can tell policies apart: neither solved nor out of reach.
LOSSES, ANSWERED = (0.05, 0.5), (0.3, 0.9)


def told_apart(losses, answered):
    inside = lambda values, least_most: all(least_most[0] <= v <= least_most[1] for v in values)
    match = f"{percent(min(answered), 1)} to {percent(max(answered), 1)}" if answered else "-"
    return (f"- Can the tasks tell policies apart: best losses {figures(min(losses))} to {figures(max(losses))} (wanted {LOSSES[0]} to "
            f"{LOSSES[1]}: {'yes' if inside(losses, LOSSES) else '**no**'}), winners answer {match} (wanted {percent(ANSWERED[0], 0)} to "
            f"{percent(ANSWERED[1], 0)}: {'yes' if inside(answered, ANSWERED) else '**no**'}).")


def probed(options):
    """What PEFT's defaults reach, and which way the backbone's arithmetic is to go for a grid that is worth its time."""
    lines = []
    for name in LEVELS:
        if (r := result(options.out, f"default_{options.seeds[0]}", name)) is None or r.get("exact_match") is None:
            lines.append(f"- {name}: not run")
            continue
        match = r["exact_match"]
        advice = "halve" if match > ANSWERED[1] else "double" if match < ANSWERED[0] else "keep"
        lines.append(f"- {name}: loss {figures(r['jobs'][0]['best'])}, exact match {percent(match, 1)}: {advice} the backbone's text.arithmetic")
    return "\n".join(lines) + "\n"


def asked(quality, ends, above, factors):
    """What was asked for, and what came."""
    of = lambda policy: [r[policy] for r in quality if policy in r and not math.isnan(r[policy])]
    middle = lambda policy: percent(statistics.median(of(policy))) if of(policy) else "-"
    exits = of("early exit") or [math.nan]
    came_out = of("own") or [math.nan]
    lines = [f"- Regret of {len(of('early exit'))} winners by early exit: median {middle('early exit')} (asked: at most 0.2 %), worst "
             f"{percent(max(exits))}; by the cut alone {middle('cut')}, worst {percent(max(of('cut') or [math.nan]))}. Median of a random quarter kept {middle('random')}, of ASHA {middle('ASHA')}, of one job at ten "
             f"times full finetuning's rate {middle('ten times')}, of PEFT's defaults {middle('PEFT')}, of the paper's exit {middle('paper')}.",
             f"- The adapters that came out, which did not run on to the end: median {middle('own')}, worst {percent(max(came_out))}; "
             f"the paper's exit {middle('paper own')} (replayed).",
             f"- Samples saved: {percent(min(of('saved')))} to {percent(max(of('saved')))} (asked 72 %).",
             f"- Worth searching: median loss above the best at least {percent(min(above), 1)} (asked 5 %); by the paper's detectors, were none cut, diverging at least "
             f"{min(e['diverging'] for e in ends)}, overfitting at least {min(e['overfitting'] for e in ends)} (asked 3 and 3)."]
    lines.append(told_apart(of("best"), [a for r in quality for a in r["answered"]]))
    for lever in ("early exit", "batching", "all levers"):
        if found := [f[lever] for f in factors if f]:
            lines.append(f"- {lever} over one job at a time: {', '.join(f'{v:.2f}' for v in found)}" +
                         (" (asked 13.8)." if lever == "all levers" else "."))
    return "\n".join(lines)


def tables(options):
    out, worth, quality, speed = options.out, [], [], []
    all_found, all_ends, above, factors = [], [], [], []
    for seed in options.seeds:
        for name in LEVELS:
            whole, both = result(out, f"exhaustive_{seed}", name), result(out, f"both_{seed}", name)
            if whole is None or both is None:
                continue
            w = search_worth(out, seed, name)
            ends = {e: sum(j["end"] == e for j in both["jobs"]) for e in ("diverging", "overfitting", "underperforming", "done")}
            uncut = replay(out, seed, name, {"warmup_ratio": WARMUP, "keep_ratio": 1}, str(options.binary))["ends"]
            worth.append([name, seed, w["jobs"], figures(w["began"]), figures(w["best"]), percent(w["median_above"], 1), *ends.values(),
                          f"{uncut['diverging']}, {uncut['overfitting']}",
                          f"{w['spearman']:.2f}", percent(w["coverage"], 0)])
            rows, found = quality_of(options, seed, name, whole, both, w)
            quality += rows
            all_found.append(found), all_ends.append(uncut), above.append(w["median_above"])
            if seed == options.seeds[0]:
                rows, levers = speed_of(out, name, whole, both)
                speed += rows
                factors.append(levers)
    if not worth:
        return "no seed has both its runs to the end and its runs with early exit yet\n"
    text = "### Is the search worth it\n\n" + markdown(
        ["task", "seed", "jobs", "the best's first loss", "best loss", "median above it", "diverging", "overfitting", "underperforming", "done",
         "diverging and overfitting by the paper's detectors, were none cut (replayed)", "Spearman, 5 % and final", "top quarter covered"], worth)
    text += "\n\n### Quality\n\n" + markdown(
        ["task", "seed", "policy", "samples saved", "regret of the job (in losses)", "of the adapter that came out", "exact match"], quality)
    text += "\n\n### Time (the first seed)\n\n" + markdown(["task", "arm", "seconds", "of it evaluation", "over sequential"], speed)
    return text + "\n\n### Asked\n\n" + asked(all_found, all_ends, above, factors) + "\n"

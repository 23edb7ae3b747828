"""Synthetic loss curves and what the rules of early exit decide on them, by a reference written from the rules alone
(ALTO, section 5 and Algorithm 1; ASHA by Ray Tune's stopping rule). Writes early_exit_cases.json beside this file:
{"name", "header", "lines", "decisions"} of each case. Every case says by `want` what it is made for, and fails here if the
reference disagrees."""
import json
import math
import os

DEFAULTS = dict(window=2, patience_div=2, patience_ovf=2, tau_slope=0.001, tau_gap=0.1, ema_alpha=0.1, warmup_ratio=0.05,
                keep_ratio=0.25, cut="barrier", asha_max_t=100, asha_grace=1, asha_eta=4)


def ceil_share(ratio, n):
    from fractions import Fraction
    return math.ceil(Fraction(str(ratio)) * n)  # the decimal number the user wrote, exactly


def slope(y, w):
    if len(y) < w:
        return None
    y = y[-w:]
    xm, ym = sum(range(w)) / w, sum(y) / w
    return sum((x - xm) * (v - ym) for x, v in enumerate(y)) / sum((x - xm) ** 2 for x in range(w))


def finite(x):
    return x is not None and math.isfinite(x)


def percentile(sorted_values, q):
    at = q * (len(sorted_values) - 1)
    low = math.floor(at)
    high = min(low + 1, len(sorted_values) - 1)
    return sorted_values[low] + (at - low) * (sorted_values[high] - sorted_values[low])


def decide(header, lines):
    c = dict(DEFAULTS, **{k: v for k, v in header.items() if k in DEFAULTS})
    total = header["total_steps"]
    jobs = {j: dict(e=None, eh=[], vh=[], div=0, ovf=0, out=False, at=None, rungs=set()) for j in total}
    recorded, out, cut_done = {}, [], c["cut"] == "asha"
    for line in lines:
        j = jobs[line["job"]]
        if "train_loss" in line:
            l = math.nan if line["train_loss"] is None else line["train_loss"]
            j["e"] = l if j["e"] is None else c["ema_alpha"] * l + (1 - c["ema_alpha"]) * j["e"]
        if "val_loss" not in line or j["out"]:
            continue
        v = math.nan if line["val_loss"] is None else line["val_loss"]
        if j["e"] is not None:
            j["eh"].append(j["e"])
        j["vh"].append(v)
        e, se, sv = j["e"], slope(j["eh"], c["window"]), slope(j["vh"], c["window"])
        gap = None if e is None else (v - e) / max(abs(e), 1e-12)
        record = dict(job=line["job"], step=line["step"], decision=None, train_ema=e, val_loss=v, slope_train=se,
                      slope_val=sv, gap=gap, rank=None)
        if not finite(v) or (e is not None and not finite(e)):
            record["decision"] = "diverging"
        else:
            j["div"] = j["div"] + 1 if se is not None and sv is not None and se >= c["tau_slope"] and sv >= c["tau_slope"] else 0
            if j["div"] >= c["patience_div"]:
                record["decision"] = "diverging"
            elif len(j["vh"]) >= c["window"] and gap is not None and gap > c["tau_gap"]:
                j["ovf"] += 1
                if j["ovf"] >= c["patience_ovf"]:
                    record["decision"] = "overfitting"
            else:
                j["ovf"] = 0
        if record["decision"] is None and c["cut"] == "asha":
            m = 1
            milestones = []
            m = c["asha_grace"]
            while m < c["asha_max_t"]:
                milestones.append(m)
                m *= c["asha_eta"]
            for m in reversed(milestones):
                if line["step"] * c["asha_max_t"] < m * total[line["job"]]:
                    continue
                if m not in j["rungs"]:
                    j["rungs"].add(m)
                    seen = sorted(recorded.setdefault(m, []))
                    record["rank"] = 1 + sum(s < v for s in seen)
                    worse = bool(seen) and v > percentile(seen, 1 / c["asha_eta"])
                    record["decision"] = "underperforming" if worse else "kept"
                    recorded[m].append(v)
                break
        if record["decision"] is not None:
            out.append(record)
            j["out"] = record["decision"] != "kept"
        elif not cut_done and j["at"] is None and line["step"] >= max(1, ceil_share(c["warmup_ratio"], total[line["job"]])):
            j["at"] = record
        if not cut_done and all(k["out"] or k["at"] for k in jobs.values()):
            cut_done = True
            ranking = sorted((k["at"]["val_loss"], name) for name, k in jobs.items() if not k["out"])
            for rank, (_, name) in enumerate(ranking, 1):
                keep = rank <= ceil_share(c["keep_ratio"], len(ranking))
                out.append(dict(jobs[name]["at"], rank=rank, decision="kept" if keep else "underperforming"))
                jobs[name]["out"] = not keep
    clean = lambda x: None if isinstance(x, float) and not math.isfinite(x) else x
    return [{k: clean(v) for k, v in d.items()} for d in out]


CASES = []


def case(name, want, curves, total=1000, interval=10, **config):
    """curves: by job a list of (train, val) of evaluations, every `interval` steps, or a list of lines. want: the
    decisions as (job, step, decision)."""
    totals = total if isinstance(total, dict) else {job: total for job in curves}
    lines = []
    if isinstance(curves, dict):
        for k in range(max(len(c) for c in curves.values())):
            for job, c in curves.items():
                if k < len(c):
                    step = (k + 1) * interval
                    lines += [dict(job=job, step=step, train_loss=c[k][0]), dict(job=job, step=step, val_loss=c[k][1])]
    header = dict(task=name, total_steps=totals, **config)
    decisions = decide(header, lines)
    got = [(d["job"], d["step"], d["decision"]) for d in decisions]
    assert got == want, (name, got, want)
    CASES.append(dict(name=name, header=header, lines=lines, decisions=decisions))


def lines_case(name, want, total, lines, **config):
    header = dict(task=name, total_steps=total, **config)
    decisions = decide(header, lines)
    got = [(d["job"], d["step"], d["decision"]) for d in decisions]
    assert got == want, (name, got, want)
    CASES.append(dict(name=name, header=header, lines=lines, decisions=decisions))


def main():
    one = dict(ema_alpha=1.0)  # e is the train loss: exact numbers
    late = dict(one, warmup_ratio=1.0)
    T = 0.001
    # Divergence: slopes around tau_slope.
    case("both rise", [("j", 30, "diverging")], {"j": [(2, 2), (3, 3), (4, 4)]}, **late)
    case("rise stops", [], {"j": [(2, 2), (3, 3), (3, 3), (4, 4), (4, 4)]}, **late)
    case("slopes at tau", [("j", 30, "diverging")], {"j": [(-T, -T), (0, 0), (T, T)]}, tau_gap=1e9, **late)
    case("val slope below tau", [], {"j": [(-T, 1), (0, 1.0009), (T, 1.0018)]}, tau_gap=1e9, **late)
    case("train slope below tau", [], {"j": [(1, -T), (1.0009, 0), (1.0018, T)]}, tau_gap=1e9, **late)
    case("just above tau", [("j", 30, "diverging")], {"j": [(1, 1), (1.0011, 1.0011), (1.0022, 1.0022)]}, **late)
    case("only train rises", [], {"j": [(2, 3), (3, 3), (4, 3), (5, 3)]}, **late)
    case("only val rises", [], {"j": [(5, 1), (5, 2), (5, 3), (5, 4)]}, **late)
    case("counter starts again", [("j", 70, "diverging")],
         {"j": [(2, 2), (3, 3), (2, 2), (3, 3), (2, 2), (3, 3), (4, 4)]}, **late)
    case("patience 1", [("j", 20, "diverging")], {"j": [(2, 2), (3, 3)]}, patience_div=1, **late)
    case("patience 4", [("j", 50, "diverging")], {"j": [(k, k) for k in range(1, 8)]}, patience_div=4, **late)
    case("window 3 looks over a dent", [("j", 40, "diverging")],
         {"j": [(1, 1), (3, 3), (2, 2), (4, 4)]}, window=3, **late)
    case("window 3 too few", [], {"j": [(1, 1), (3, 3), (5, 5)]}, window=3, **late)
    case("window 5", [("j", 60, "diverging")], {"j": [(1 + 0.002 * k, 1 + 0.002 * k) for k in range(7)]}, window=5, **late)
    case("average lags", [("j", 50, "diverging")],
         {"j": [(2, 2), (1, 2.1), (1, 2.2), (9, 2.3), (9, 2.4), (9, 2.5)]}, warmup_ratio=1.0, tau_gap=9)
    case("own threshold", [("j", 30, "diverging")], {"j": [(1, 1), (1.5, 1.5), (2, 2)]}, tau_slope=0.5, **late)
    case("under own threshold", [], {"j": [(1, 1), (1.5, 1.5), (2, 2)]}, tau_slope=0.51, **late)
    case("falling threshold", [("j", 30, "diverging")], {"j": [(3, 3), (2.95, 2.95), (2.9, 2.9)]}, tau_slope=-0.1, **late)
    # Overfitting: gaps around tau_gap.
    case("gap", [("j", 30, "overfitting")], {"j": [(1, 1.2), (1, 1.2), (1, 1.2)]}, **late)
    case("gap at tau", [], {"j": [(2, 2.5)] * 6}, tau_gap=0.25, **late)
    case("gap just above tau", [("j", 30, "overfitting")], {"j": [(2, 2.5000001)] * 6}, tau_gap=0.25, **late)
    case("gap just below tau", [], {"j": [(1, 1.0999)] * 6}, **late)
    case("gap counter starts again", [("j", 70, "overfitting")],
         {"j": [(1, 1.2), (1, 1.2), (1, 1), (1, 1.2), (1, 1), (1, 1.2), (1, 1.2)]}, **late)
    case("first point does not count", [("j", 30, "overfitting")], {"j": [(1, 9), (1, 1.2), (1, 1.2)]}, **late)
    case("suspended for a window of 4", [("j", 50, "overfitting")], {"j": [(1, 2)] * 7}, window=4, **late)
    case("gap patience 1", [("j", 20, "overfitting")], {"j": [(1, 2)] * 3}, patience_ovf=1, **late)
    case("gap of zero average", [("j", 30, "overfitting")], {"j": [(0, 0.5)] * 3}, **late)
    case("negative losses", [], {"j": [(-2, -2)] * 4}, **late)
    case("divergence comes first", [("j", 30, "diverging")], {"j": [(1, 2), (2, 4), (3, 6)]}, **late)
    case("overfits before it diverges", [("j", 30, "overfitting")], {"j": [(1, 2), (1, 3), (1.5, 4), (2, 5)]}, **late)
    case("average hides the gap", [], {"j": [(4, 3), (1, 2.9), (1, 2.8), (1, 2.7)]}, warmup_ratio=1.0)
    # Not finite.
    case("NaN train", [("j", 20, "diverging")], {"j": [(2, 2), (None, 2), (2, 2)]}, **late)
    case("NaN val", [("j", 20, "diverging")], {"j": [(2, 2), (2, None)]}, **late)
    case("NaN at once", [("j", 10, "diverging")], {"j": [(None, None)]}, **late)
    lines_case("NaN between evaluations", [("j", 20, "diverging")], {"j": 1000},
               [dict(job="j", step=10, train_loss=2.0), dict(job="j", step=10, val_loss=2.0),
                dict(job="j", step=13, train_loss=None), dict(job="j", step=20, train_loss=2.0),
                dict(job="j", step=20, val_loss=2.0)])
    lines_case("validation before training", [("j", 20, "overfitting")], {"j": 1000},
               [dict(job="j", step=0, val_loss=3.0), dict(job="j", step=10, train_loss=1.0),
                dict(job="j", step=10, val_loss=2.0), dict(job="j", step=20, train_loss=1.0),
                dict(job="j", step=20, val_loss=2.0), dict(job="j", step=30, val_loss=2.0)])
    # The cut.
    flat = lambda v: [(v, v)] * 5
    case("cut of four", [("c", 50, "kept"), ("a", 50, "underperforming"), ("d", 50, "underperforming"),
                         ("b", 50, "underperforming")],
         {"a": flat(2), "b": flat(4), "c": flat(1), "d": flat(3)}, **one)
    case("cut of five keeps two", [("e", 50, "kept"), ("d", 50, "kept")] +
         [(j, 50, "underperforming") for j in "cba"], {j: flat(5.0 - k) for k, j in enumerate("abcde")}, **one)
    case("ties go by name", [("j1", 50, "kept"), ("j10", 50, "kept"), ("j2", 50, "underperforming"),
                             ("j3", 50, "underperforming")],
         {j: flat(2.0) for j in ("j3", "j2", "j10", "j1")}, keep_ratio=0.5, **one)
    case("one job alone is kept", [("j", 50, "kept")], {"j": flat(1.0)}, **one)
    case("the cut waits for the last", [], {"a": flat(1.0), "b": flat(2.0)[:4]}, **one)
    case("the last one's exit sets the cut off", [("b", 30, "diverging"), ("a", 50, "kept"), ("c", 50, "underperforming")],
         {"a": flat(1.0), "b": [(1, 1), (2, 2), (3, 3)], "c": flat(2.0)}, **one)
    case("exit after the others' boundary", [("b", 60, "diverging"), ("a", 50, "kept"), ("c", 50, "underperforming")],
         {"a": flat(1.0), "b": [(1, 1), (1, 1), (1, 1), (1, 1), (2, 2), (3, 3)], "c": flat(2.0)},
         total={"a": 1000, "b": 2000, "c": 1000}, **one)
    case("exit at the boundary is not ranked", [("b", 50, "overfitting"), ("a", 50, "kept"), ("c", 50, "underperforming")],
         {"a": flat(1.0), "b": [(1, 0.9)] * 3 + [(0.5, 0.9)] * 2, "c": flat(2.0)}, **one)
    case("boundaries by own steps", [("s", 20, "kept"), ("l", 80, "underperforming")],
         {"s": [(1, 1)] * 2, "l": [(2, 2)] * 8}, total={"s": 400, "l": 1600}, keep_ratio=0.5, **one)
    case("warm-up of 0.05 * 140 is 7", [("j", 7, "kept")], {"j": [(1, 1)] * 9}, total=140, interval=1, **one)
    case("survivors go on under both rules", [("a", 20, "kept"), ("b", 20, "underperforming"), ("a", 50, "diverging")],
         {"a": [(1, 1), (1, 1), (1, 1), (2, 2), (3, 3)], "b": [(2, 2)] * 5}, total=400, **one)
    case("counters outlive the cut", [("a", 20, "kept"), ("b", 20, "underperforming"), ("a", 30, "diverging")],
         {"a": [(1, 1), (2, 2), (3, 3)], "b": [(9, 9)] * 2}, total=400, **one)
    case("not heard after its exit", [("j", 30, "diverging")], {"j": [(2, 2), (3, 3), (4, 4), (5, 5), (1, 1)]}, **late)
    case("keep all", [("a", 50, "kept"), ("b", 50, "kept")], {"a": flat(1.0), "b": flat(2.0)}, keep_ratio=1.0, **one)
    case("keep none", [("a", 50, "underperforming"), ("b", 50, "underperforming")],
         {"a": flat(1.0), "b": flat(2.0)}, keep_ratio=0.0, **one)
    # ASHA: promotions at rungs 1, 4, 16, 64 of 100.
    asha = dict(one, cut="asha", tau_slope=1e9, tau_gap=1e9)
    case("asha, first comes through", [("a", 10, "kept"), ("b", 10, "underperforming")], {"a": [(2, 2)], "b": [(3, 3)]}, **asha)
    case("asha, better comes through", [("a", 10, "kept"), ("b", 10, "kept"), ("a", 40, "kept"), ("b", 40, "kept")],
         {"a": [(2, 2)] * 5, "b": [(1, 1)] * 5}, **asha)
    case("asha, an equal one goes on", [("a", 10, "kept"), ("b", 10, "kept")], {"a": [(2, 2)], "b": [(2, 2)]}, **asha)
    state, curves = 12345, {}
    for k in range(24):
        c, v = [], 0.0
        for t in range(70):
            state = (1103515245 * state + 12345) % 2 ** 31
            v = round(1 + (k * 7 % 24) / 24 + 2 / (t + 1) + 0.2 * state / 2 ** 31, 6)
            c.append((v, v))
        curves[f"j{k:02d}"] = c
    header = dict(task="asha of 24", total_steps={j: 1000 for j in curves}, **asha)
    lines = [dict(job=j, step=10 * (t + 1), train_loss=c[t][0], val_loss=c[t][1]) for t in range(70) for j, c in curves.items()]
    decisions = decide(header, lines)
    assert sum(d["decision"] == "underperforming" for d in decisions) >= 18
    assert {d["step"] for d in decisions} >= {10, 40, 160}
    CASES.append(dict(name="asha of 24", header=header, lines=[l for l in lines if l["step"] in (10, 40, 160, 640)],
                      decisions=None))
    CASES[-1]["decisions"] = decide(header, CASES[-1]["lines"])
    case("asha, eta 2 from unit 2", [("a", 20, "kept"), ("b", 20, "underperforming"), ("a", 40, "kept")],
         {"a": [(2, 2)] * 4, "b": [(3, 3)] * 4}, asha_eta=2, asha_grace=2, **asha)
    assert len(CASES) >= 40
    path = os.path.join(os.path.dirname(__file__), "early_exit_cases.json")
    with open(path, "w") as out:
        out.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES) + "\n]\n")
    print(len(CASES), "cases,", os.path.getsize(path), "bytes")


main()

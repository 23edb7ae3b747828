#!/usr/bin/env python3
"""Speed against quality of the methods that compute less, on the same axes.

  trireme bench sampling --device cuda --json --problem "recipes/sdit/speed.yaml model=recipes/tide/flux_12.json peers" > rows.json
  python3 bench/studies/dit_curve.py points --study runs/dit --speed rows.json [--peers runs/cache_dit] > curve.json
  python3 bench/studies/dit_curve.py draw curve.json curve.svg
Two measurements: speed is of a large model's shape with a pattern fixed by the file, quality of the small model (bench/studies/dit.py,
and dit_peers.py of cache-dit) at about the same share of tokens or steps. Fewer dense steps are as fast as their number says.
--self-test: recipes/sdit/curve.svg is what recipes/sdit/curve.json says, and that what the results page says.
"""
import argparse
import json
import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# method -> [(arm of speed.yaml, arm of the study)]
METHODS = {
    "SDiT (reconstruction)": [("sdit", "sdit_60"), ("sdit_3x", "sdit_21")],
    "RAS": [("ras", "ras_60")],
    "random tokens": [("random_tokens", "random_60")],
    "TeaCache": [("teacache", "teacache_33")],
    "first block, Taylor": [("first_block_taylor", "first_block_taylor_c")],
    "cache-dit, compiled": [("cache_dit_compiled", "cache_dit_c")],
    "TaylorSeer": [("taylor_seer", "taylor_seer_3")],
    "PAB": [("pab", "pab_2")],
}
FEWER = "fewer dense steps"
COLORS = ["#475569", "#c2410c", "#b45309", "#a16207", "#1d4ed8", "#0f766e", "#0e7490", "#7c3aed", "#be185d"]


def points_of(speed, quality, about):
    """speed: rows of bench sampling; quality: arm -> row of dit.load."""
    ms = {r["arm"]: r["step_ms"] for r in speed if r.get("ranks") == 1 and "step_ms" in r}
    points = []

    def add(method, over, arm):
        if over and arm in quality and quality[arm]["psnr"] is not None:
            row = quality[arm]
            points.append({"method": method, "speed": round(over, 3), "psnr": round(row["psnr"], 1),
                           "accuracy": round(row["accuracy"], 3)})

    for arm, row in quality.items():
        if arm.startswith("dense_"):
            add(FEWER, quality["dense"]["steps"] / row["steps"], arm)
    for method, arms in METHODS.items():
        for fast, arm in arms:
            add(method, ms["dense"] / ms[fast] if fast in ms else None, arm)
    return {"about": about, "dense": round(quality["dense"]["accuracy"], 3), "points": points}


def points(study, speed, peers):
    from dit import load
    quality, about = {}, ["speed: " + speed.name]
    for folder in (study / "sdit", study / "sdit_caches", peers):  # the later ones have more pictures
        if folder and (folder / "report.json").exists():
            rows, machine = load(folder)
            quality |= rows
            about.append(f"{folder.name}: {machine['device']}, at most {max(r['pictures'] for r in rows.values())} pictures an arm")
    return points_of(json.loads(speed.read_text())["rows"], quality, about)


def draw(curve):
    width, height, left, top, right, bottom = 860, 420, 46, 40, 700, 350
    fastest = max(p["speed"] for p in curve["points"])
    x = lambda v: left + (right - left) * (v - 1) / max(fastest - 1, 0.1)
    y = lambda v: bottom - (bottom - top) * v / 60  # 60 dB: equal, by 8 bits
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10">'
           f'<rect width="{width}" height="{height}" fill="white"/>'
           f'<text x="{left}" y="16" font-size="12">Speed against quality; in brackets the share of attributes that are right '
           f'(dense {curve["dense"]:.3f})</text><text x="{left}" y="{top - 8}">PSNR to the dense picture, dB</text>'
           f'<text x="{right}" y="{bottom + 28}" text-anchor="end">times as fast as all steps dense</text>']
    for i in range(int((fastest - 1) / 0.5 + 1e-6) + 1):
        v = 1 + 0.5 * i
        out.append(f'<path d="M{x(v):.0f} {top}V{bottom}" stroke="#ddd"/><text x="{x(v):.0f}" y="{bottom + 13}" '
                   f'text-anchor="middle">{v:g}</text>')
    for v in range(0, 61, 10):
        out.append(f'<path d="M{left} {y(v):.0f}H{right}" stroke="#ddd"/><text x="{left - 4}" y="{y(v) + 3:.0f}" '
                   f'text-anchor="end">{v}</text>')
    methods = list(dict.fromkeys(p["method"] for p in curve["points"]))
    color = {m: COLORS[i % len(COLORS)] for i, m in enumerate(methods)}
    for m in methods:
        own = sorted((p["speed"], p["psnr"]) for p in curve["points"] if p["method"] == m)
        if len(own) > 1:
            line = " ".join(f"{x(s):.0f},{y(q):.0f}" for s, q in own)
            out.append(f'<polyline points="{line}" fill="none" stroke="{color[m]}" stroke-dasharray="4 3"/>')
    labels = []
    for p in sorted(curve["points"], key=lambda p: -p["psnr"]):
        beside = [b for a, b in labels if abs(x(p["speed"]) - a) < 150]
        at = next(at for k in range(200) for at in (y(p["psnr"]) - 5 - k, y(p["psnr"]) - 5 + k)
                  if all(abs(at - b) >= 11 for b in beside))
        labels.append((x(p["speed"]), at))
        out.append(f'<circle cx="{x(p["speed"]):.0f}" cy="{y(p["psnr"]):.0f}" r="3.5" fill="{color[p["method"]]}"/>'
                   f'<text x="{x(p["speed"]) + 6:.0f}" y="{at:.0f}" fill="{color[p["method"]]}">{escape(p["method"])} '
                   f'({p["accuracy"]:.3f})</text>')
    for i, line in enumerate(curve["about"]):
        out.append(f'<text x="{left}" y="{bottom + 44 + 12 * i}" font-size="9" fill="#555">{escape(line)}</text>')
    return "\n".join(out) + "</svg>\n"


def unsaid(curve, page):
    """Points with a figure that their lines of the page do not have, or whose lines it has not."""
    wrong = []
    for p in curve["points"]:
        lines = [next((text for text in page if text.startswith(begin)), None) for begin in p["lines"]]
        figures = [p["psnr"], p["accuracy"]] + p.get("ms", [p["speed"]])
        written = {n for text in lines if text for n in re.findall(r"[0-9]+(?:\.[0-9]+)?", text)}
        said = all(any(f"{v:.{d}f}" in written for d in (1, 2, 3) if round(v, d) == v) for v in figures)
        ratio = abs(p["ms"][0] / p["ms"][1] - p["speed"]) < 0.005 if "ms" in p else True
        if None in lines or not ratio or not said:
            wrong.append(p["method"])
    return wrong


def self_test():
    quality = {"dense": {"psnr": None, "accuracy": 0.9, "steps": 30}, "dense_60": {"psnr": 50.0, "accuracy": 0.91, "steps": 18},
               "ras_60": {"psnr": 34.3, "accuracy": 0.92, "steps": 30}, "pab_2": {"psnr": None, "accuracy": 0.9, "steps": 30}}
    speed = [{"arm": "dense", "ranks": 1, "step_ms": 30.0}, {"arm": "ras", "ranks": 1, "step_ms": 20.0},
             {"arm": "ras", "ranks": 2, "step_ms": 1.0}, {"arm": "pab", "ranks": 1, "step_ms": 10.0},
             {"arm": "teacache", "ranks": 1, "skipped": "it cannot"}]
    curve = points_of(speed, quality, ["<here>"])
    assert [(p["method"], p["speed"], p["psnr"]) for p in curve["points"]] == [(FEWER, 1.667, 50.0), ("RAS", 1.5, 34.3)], curve
    picture = draw(curve)
    assert picture.count("<circle") == 2 and "&lt;here&gt;" in picture and "RAS (0.920)" in picture
    assert unsaid({"points": [{"method": "a", "speed": 1.5, "psnr": 34.3, "accuracy": 0.92, "lines": ["| a"]}]},
                  ["| a | 1.50 | 34.3 | 0.921 |"]) == ["a"]
    stored = json.loads((ROOT / "recipes/sdit/curve.json").read_text())
    assert not (wrong := unsaid(stored, (ROOT / stored["page"]).read_text().splitlines())), wrong
    assert (ROOT / "recipes/sdit/curve.svg").read_text() == draw(stored), "draw it anew"
    print("dit_curve: ok")
    return 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    made = what.add_parser("points")
    made.add_argument("--study", type=Path, required=True)
    made.add_argument("--speed", type=Path, required=True)
    made.add_argument("--peers", type=Path)
    drawn = what.add_parser("draw")
    drawn.add_argument("curve", type=Path)
    drawn.add_argument("svg", type=Path)
    o = parser.parse_args()
    if o.what == "points":
        print(json.dumps(points(o.study, o.speed, o.peers), indent=1))
    else:
        o.svg.write_text(draw(json.loads(o.curve.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

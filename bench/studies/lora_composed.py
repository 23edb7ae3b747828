#!/usr/bin/env python3
"""What a sweep gains by all levers, each factor by itself: an arm's speed over sharded data-parallel, one job at a time,
times the samples that early exit saves.

  trireme bench ap_step --ranks 2 --device cuda --problem 70b/8@4096:256x1,256x2 2> rows.jsonl
  python3 bench/studies/lora_composed.py --saved 0.738 rows.jsonl

--saved: the share of all samples, evaluation counted, that early exit saved where it was measured. The product is
calculated: both factors were measured, but not in one run. Rows without one job at a time beside them are left out.
"""
import argparse
import json
import sys

from study import markdown

BASE = "data-parallel, one job at a time"


def rows_of(file):
    """Lines of {...}, among others, or the object of --json."""
    with open(file, encoding="utf-8") as text:
        found = [json.loads(line) for line in text if line.startswith("{")]
    return [row for line in found for row in line.get("rows", [line])]


def composed(rows, saved):
    """[arm, speed, early exit's factor, their product] of each (problem, length, batch)."""
    times = {}
    for row in rows:
        if "step_ms" in row:
            times.setdefault((row["problem"], row["length"], row["batch"]), {})[row["arm"]] = row["step_ms"]
    exits = 1 / (1 - saved)
    return {key: [(arm, arms[BASE] / ms, exits, arms[BASE] / ms * exits) for arm, ms in arms.items()
                  if "alone" not in arm]
            for key, arms in times.items() if BASE in arms}


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--saved", type=float, required=True, help="share of samples saved, from 0 to below 1")
    options.add_argument("rows", nargs="+", help="files of rows of ap_step")
    options = options.parse_args()
    if not 0 <= options.saved < 1:
        sys.exit(f"--saved {options.saved} is no share: give one from 0 to below 1, such as 0.738")
    found = composed([row for file in options.rows for row in rows_of(file)], options.saved)
    if not found:
        sys.exit(f"{options.rows[0]}: no row has '{BASE}' beside it: measure that arm too")
    table = [[*map(str, key), arm, f"{speed:.2f}", f"{exits:.2f}", f"{product:.2f}"]
             for key, arms in found.items() for arm, speed, exits, product in arms]
    print(markdown(["problem", "length", "batch", "arm", "speed", "early exit", "product (calculated)"], table))


if __name__ == "__main__":
    main()

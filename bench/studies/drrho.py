#!/usr/bin/env python3
"""Training with a reference model (DRRho-CLIP) on drawn pairs: what each use of the reference gives, and how much data it
saves. The reference saw the other half of the training captions, or the same half as the target.

  python3 bench/studies/drrho.py scenes --out runs/drrho --jobs 60 --gpus 4
"""
import math
import sys

from study import Arm, Run, Setting, curve_of, device, main, markdown, percent, prepared, runs_of_settings, samples_to, score_of

R1 = ["image_to_text_r1", "text_to_image_r1"]
R10 = ["image_to_text_r10", "text_to_image_r10"]
BATCH = {"scenes": 128, "openclipart": 64}
STEPS = {"scenes": 7812, "openclipart": 2000}  # scenes: 10 epochs of 100,000 pairs
# The target's half; a twentieth of it chooses the settings.
TARGET, CHOOSE = "data.part=[0.5, 1]", ["data.part=[0.5, 0.975]", "data.eval_part=[0.975, 1]"]
CHOOSE_STEPS = {"scenes": 1560, "openclipart": 1000}
PAIRS = {"scenes": 100000, "openclipart": 2363}  # of the target's half

RHO = [["loss.rho=1"], ["loss.rho=2"]]
TAU = [["loss.tau=0.03"], ["loss.tau=0.07"]]
SELECT = ["loss.name=mbcl", "loss.lr_tau=-1", "reference.use=[select]", "reference.select_fraction=0.2"]


def gamma(part, steps, least, share):
    """From 1 down to `least` over this share of the epochs: alike in runs of any length."""
    epochs = steps * BATCH[part] / PAIRS[part]
    return [f"loss.gamma_min={least}", f"loss.gamma_decay_epochs={max(1, round(share * epochs))}"]


def v3(part, steps):
    return ["loss.name=rgclg", *gamma(part, steps, 0.2, 0.5)]


def drrho(part, steps):
    """Constant temperature; the authors' rule for gamma gives where the whole run ends."""
    least = min(1, 4.177 * (STEPS[part] * BATCH[part] / PAIRS[part]) ** -0.7265)
    return ["recipe=drrho_clip", "loss.temperature=const", "loss.eps=1.0e-4", *gamma(part, steps, round(least, 3), 1)]


def selecting(part, steps):
    return SELECT  # whose loss has no gamma


def uses(part, options):
    """Name: loss, its overrides, temperatures of the grid, steps. Selection trains as many pairs as the others, so it reads
    five times as many; `short` sees half of the samples."""
    steps = STEPS[part]
    wide = [f"batch_size={5 * BATCH[part]}", device(options, True)]
    return {
        "shift": (drrho, ["reference.use=[shift]"], TAU, steps),
        "shift-short": (drrho, ["reference.use=[shift]"], TAU, steps // 2),
        "distill": (v3, ["reference.use=[distill]", "reference.distill_scale=50"], RHO, steps),
        "shift-distill": (drrho, ["reference.use=[shift, distill]", "reference.distill_scale=50"], TAU, steps),
        "jest": (selecting, ["reference.select=jest", *wide], TAU, steps),
        "rho": (selecting, ["reference.select=rho", *wide], TAU, steps),
    }


def arm(part, options, name, loss, overrides, grid, steps, after=()):
    return Arm(name, loss(part, steps) + overrides + [f"steps={steps}"], grid, options.seeds, after=list(after),
               parts=loss(part, CHOOSE_STEPS[part]))


def common(part, options):
    data = [f"data.file={prepared(part, options)[0]}"]
    if part == "scenes":
        return [*data, "epochs=0", "optimizer.warmup=500", f"eval_every={STEPS[part] // 20}", device(options, False)]
    return [*data, "threads=1", "data.threads=1", "checkpoint.every=100000", "eval_every=100", device(options, True)]


def reference(part, options, which):
    return f"{options.out}/{part}/reference-{which}"


def yaml_of(part):
    return "recipes/fastclip/" + ("scenes.yaml" if part == "scenes" else "quickstart.yaml")


def references(part, options):
    """Of the other half and of the same: the mini-batch loss, as many samples as the target."""
    halves = {"other": "data.part=[0, 0.5]", "same": TARGET}
    settings = [f"batch_size={2 * BATCH[part]}", f"steps={STEPS[part] // 2}", "optimizer.lr=2e-3", "loss.name=mbcl", "loss.lr_tau=-1", "loss.tau=0.05",
                device(options, True)]
    return [Run(f"{part}/reference-{which}", yaml_of(part), common(part, options) + settings + [half, "seed=1000"])
            for which, half in halves.items()]


def setting(part, options):
    small = part == "openclipart"
    # The second: DRRho's constant temperature and log u alone.
    arms = [arm(part, options, "v3", v3, [], RHO, STEPS[part]), arm(part, options, "no-reference", drrho, [], TAU, STEPS[part])]
    for which in ("other", "same"):
        for name, (loss, overrides, grid, steps) in uses(part, options).items():
            if small and (which, name) != ("other", "shift"):
                continue
            overrides = overrides + [f"reference.model={reference(part, options, which)}"]
            arms.append(arm(part, options, f"{name}-{which}", loss, overrides, grid, steps, [f"{part}/reference-{which}"]))
    if options.only:
        arms = [a for a in arms if a.name in options.only.split(",")]
    overrides = common(part, options) + [f"batch_size={BATCH[part]}", TARGET]
    rates, parts = ["5e-4", "1e-3"], CHOOSE + [f"steps={CHOOSE_STEPS[part]}", "eval_every=0"]
    return Setting(part, yaml_of(part), overrides, rates, arms, R10 if small else R1, parts, "v3")


def efficiency(part, s, results):
    """Samples at which an arm's curves reach the mean final score of v3, and the variance of the loss that is left."""
    ends = [score_of(results.get(s.run_name(a, k)), s.metrics) for a in s.arms if a.name == s.against for k in range(1, a.seeds + 1)]
    ends = [e for e in ends if e is not None]
    if not ends:
        return "", {}
    target, rows, found = sum(ends) / len(ends), [], {}
    for arm in s.arms:
        runs = [results[s.run_name(arm, k)] for k in range(1, arm.seeds + 1) if s.run_name(arm, k) in results]
        samples = [samples_to(curve_of(r, s.metrics, BATCH[part]), target) for r in runs]
        ratio = [r["eval"]["variance_ratio"][-1][1] for r in runs if "variance_ratio" in r["eval"]]
        found[arm.name] = {"samples_to_v3": samples, "variance_ratio": ratio}
        shown = " ".join("never" if math.isinf(n) else f"{n / 1000:.0f}" for n in samples)
        rows.append([arm.name, shown, " ".join(f"{v:.3f}" for v in ratio)])
    header = ["arm", f"thousand trained samples to {percent(target)} %, by seed", "Var(l - l_ref) / Var(l), held out"]
    return markdown(header, rows) + "\n", found


def data_of(part, options):
    return [prepared(name, options) for name in PARTS[part]]


def runs_of(part, options):
    first = [run for name in PARTS[part] for run in references(name, options)]
    return first + runs_of_settings([setting(name, options) for name in PARTS[part]])


def tables_of(part, options, results):
    texts, all_rows = [], []
    for name in PARTS[part]:
        s = setting(name, options)
        text, rows = s.table(results)
        more, found = efficiency(name, s, results)
        for which in ("other", "same"):
            score = score_of(results.get(f"{name}/reference-{which}"), s.metrics)
            more += f"\nreference of the {which} half: {percent(score)} %"
        texts.append(text + "\n" + more + "\n")
        all_rows += [dict(row, **found.get(row["arm"], {})) for row in rows]
    return "\n".join(texts), all_rows


PARTS = {"scenes": ["scenes"], "openclipart": ["openclipart"], "both": ["scenes", "openclipart"]}

if __name__ == "__main__":
    sys.exit(main(list(PARTS), data_of, runs_of, tables_of))

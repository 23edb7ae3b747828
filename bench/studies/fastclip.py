#!/usr/bin/env python3
"""FastCLIP's losses against the mini-batch loss: seeds, paired intervals, rates chosen on captions of their own.

  python3 bench/studies/fastclip.py scenes --out runs/scenes --jobs 48 --gpus 4
  python3 bench/studies/fastclip.py openclipart --out runs/openclipart

Each loss takes the better of 2 learning rates x 2 temperatures at each batch size, by one run on a part of the training
captions that is evaluated on another; the runs that count then train on all and are evaluated on what the set holds out.
"""
import sys
from dataclasses import replace

from study import Arm, Setting, device, main, prepared, runs_of_settings

# The temperature of the grid: where it starts (v1: where it stays), or the rho that steers it.
TAU = [["loss.tau=0.03"], ["loss.tau=0.07"]]
RHO = [["loss.rho=1"], ["loss.rho=2"]]
ARMS = {
    "mbcl": (["loss.name=mbcl", "loss.lr_tau=-1"], TAU),
    "v3": (["loss.name=rgclg"], RHO),
    "scent": (["loss.name=rgclg", "loss.estimator=scent", "loss.u_domain=log", "loss.eps=1.0e-6"], RHO),
    "v2": (["loss.name=rgcl", "loss.temperature=individual", "loss.tau=0.03", "loss.lr_tau=2.0e-3"], RHO),
    "v0": (["loss.name=gcl", "loss.lr_tau=-1"], TAU),
    "v1": (["loss.name=gcl", "loss.temperature=const"], TAU),
    # For the cause: v3 without memory (gamma = 1 all along), and the mini-batch loss at a temperature that stays.
    "v3-batch": (["loss.name=rgclg", "loss.estimator=none"], RHO),
    "mbcl-const": (["loss.name=mbcl", "loss.temperature=const"], TAU),
    "siglip": (["loss.name=siglip", "loss.lr_tau=-1"], [["loss.tau=0.1"], ["loss.tau=0.05"]]),
}


def arms_of(options, seeds):
    wanted = options.only.split(",") if options.only else list(ARMS)
    return [Arm(name, *ARMS[name], seeds) for name in wanted]


def scenes(options):
    metrics = ["image_to_text_r1", "text_to_image_r1"]
    # Rates are chosen in three epochs, on 5,000 pairs of the 200,000.
    parts = ["epochs=3", "data.part=[0, 0.975]", "data.eval_part=[0.975, 1]"]
    file = f"data.file={prepared('scenes', options)[0]}"
    return [
        Setting(f"batch{batch}", "recipes/fastclip/scenes.yaml",
                [file, f"batch_size={batch}", f"optimizer.warmup={warmup}", f"eval_every={every}", device(options, batch > 64)],
                rates, arms_of(options, options.seeds), metrics, parts, "mbcl")
        for batch, warmup, every, rates in ((64, 1000, 3125, ["5e-4", "1e-3"]), (256, 250, 781, ["1e-3", "2e-3"]))
    ]


def openclipart(options):
    arms = []
    for arm in arms_of(options, 1):
        pair = arm.name in ("mbcl", "v3")
        arms.append(replace(arm, seeds=options.seeds if pair else 1))
        if pair:
            arms.append(replace(arms[-1], name=arm.name + "-masked", overrides=arm.overrides + ["loss.mask_same_caption=true"]))
    metrics = ["image_to_text_r10", "text_to_image_r10"]
    overrides = [f"data.file={prepared('openclipart', options)[0]}", "threads=1", "data.threads=1", "checkpoint.every=100000",
                 device(options, True)]
    return [Setting("openclipart", "recipes/fastclip/quickstart.yaml", overrides, ["5e-4", "1e-3"], arms, metrics,
                    ["steps=1000", "optimizer.warmup=200", "data.part=[0, 0.9]", "data.eval_part=[0.9, 1]"], "mbcl")]


PARTS = {"scenes": ["scenes"], "openclipart": ["openclipart"], "both": ["scenes", "openclipart"]}
SETTINGS = {"scenes": scenes, "openclipart": openclipart}


def settings_of(part, options):
    return [setting for name in PARTS[part] for setting in SETTINGS[name](options)]


def data_of(part, options):
    return [prepared(name, options) for name in PARTS[part]]


def runs_of(part, options):
    return runs_of_settings(settings_of(part, options))


def tables_of(part, options, results):
    tables = [s.table(results) for s in settings_of(part, options)]
    return "\n".join(t for t, _ in tables), [row for _, rows in tables for row in rows]


if __name__ == "__main__":
    sys.exit(main(list(PARTS), data_of, runs_of, tables_of))

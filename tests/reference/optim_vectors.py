"""Writes tests/reference/clip/optim_sched.json: update rules and schedules by torch.optim, and by timm where torch has
none, in f64.

Schema: inputs {W0, b0, t0, grads}, optimizer_settings, outputs[name][step], schedule_settings, schedules {steps, name: values}.
Usage, with torch and timm: python3 optim_vectors.py OUT.json
"""
import json, math, sys
import timm.optim
import torch

torch.set_default_dtype(torch.float64)
gen = torch.Generator().manual_seed(11)
draw = lambda *shape: torch.randn(*shape, generator=gen)
W0, B0, T0 = draw(3, 4), draw(4), draw(())
GRADS = [{"W": draw(3, 4), "b": draw(4), "t": draw(())} for _ in range(6)]

OPTIMIZERS = {
    "adamw": {"kind": "adamw", "lr": 1e-3, "lr_t": 2e-4, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "wd_W": 0.1},
    "adamw, large steps": {"kind": "adamw", "lr": 0.1, "lr_t": 0.02, "beta1": 0.8, "beta2": 0.999, "eps": 1e-8, "wd_W": 0.01},
    "sgd": {"kind": "sgd", "lr": 0.5, "lr_t": 2e-4, "momentum": 0.9, "wd_W": 0.1},
    "sgd, none for t": {"kind": "sgd", "lr": 0.5, "lr_t": 2e-4, "momentum": 0.9, "momentum_t": 0.0, "wd_W": 0.1},
    "nesterov": {"kind": "nesterov", "lr": 0.2, "lr_t": 1e-3, "momentum": 0.8, "momentum_t": 0.5, "wd_W": 0.05},
    "lamb": {"kind": "lamb", "lr": 2e-3, "lr_t": 2e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "wd_W": 0.1},
    "lamb, large steps": {"kind": "lamb", "lr": 0.1, "lr_t": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-3, "wd_W": 0.01},
    "lion": {"kind": "lion", "lr": 1e-2, "lr_t": 2e-4, "beta1": 0.9, "beta2": 0.99, "wd_W": 0.1},
    "sgd without momentum": {"kind": "sgd", "lr": 0.05, "lr_t": 2e-4, "momentum": 0.0, "wd_W": 0.0},
}
SCHEDULES = {
    "cosine": {"kind": "cosine", "base": 1e-3, "warmup": 10, "total": 100, "lr_min": 0.0},
    "cosine to a floor": {"kind": "cosine", "base": 2e-4, "warmup": 7, "total": 90, "lr_min": 4e-5},
    "const": {"kind": "const", "base": 2e-4, "warmup": 5, "total": 100},
    "cooldown in a line": {"kind": "const_cooldown", "base": 1e-3, "warmup": 6, "total": 100, "cooldown": 60, "power": 1.0, "end": 0.0},
    "cooldown by a power": {"kind": "const_cooldown", "base": 3e-3, "warmup": 1, "total": 90, "cooldown": 85, "power": 2.5, "end": 2e-4},
}
STEPS = [0, 1, 4, 6, 9, 10, 11, 42, 55, 89]


def train(s):
    w, b, t = (torch.nn.Parameter(x.clone()) for x in (W0, B0, T0))
    groups = [
        {"params": [w], "lr": s["lr"], "weight_decay": s["wd_W"]},
        {"params": [b], "lr": s["lr"], "weight_decay": 0.0},
        {"params": [t], "lr": s["lr_t"], "weight_decay": 0.0},
    ]
    if s["kind"] == "adamw":
        optimizer = torch.optim.AdamW(groups, betas=(s["beta1"], s["beta2"]), eps=s["eps"], foreach=False, fused=False)
    elif s["kind"] == "lamb":
        optimizer = timm.optim.Lamb(groups, betas=(s["beta1"], s["beta2"]), eps=s["eps"], max_grad_norm=None)
    elif s["kind"] == "lion":
        optimizer = timm.optim.Lion(groups, betas=(s["beta1"], s["beta2"]), foreach=False)
    else:
        for group in groups:
            group |= {"momentum": s["momentum"], "nesterov": s["kind"] == "nesterov"}
        if "momentum_t" in s:
            groups[2] |= {"momentum": s["momentum_t"], "nesterov": False}
        optimizer = torch.optim.SGD(groups, foreach=False, fused=False)
    out = []
    for g in GRADS:
        w.grad, b.grad, t.grad = g["W"].clone(), g["b"].clone(), g["t"].clone()
        optimizer.step()
        out.append({"W": w.tolist(), "b": b.tolist(), "t": t.item()})
    return out


def rates(s):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=s["base"])
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: (k + 1) / s["warmup"])
    if s["kind"] == "cosine":
        rest = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, s["total"] - s["warmup"], eta_min=s["lr_min"])
    elif s["kind"] == "const_cooldown":
        left = lambda k: min(1.0, (s["total"] - s["warmup"] - k) / s["cooldown"])
        end = s["end"] / s["base"]
        rest = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: left(k) ** s["power"] * (1 - end) + end)
    else:
        rest = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, rest], [s["warmup"]])
    out = []
    for _ in range(max(STEPS) + 1):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    return [out[k] for k in STEPS]


def gammas(s):
    decay = lambda e: 0.5 * (1 + math.cos(math.pi * min(e, s["E"]) / s["E"])) * (1 - s["gmin"]) + s["gmin"]
    return [decay(e) for e in range(s["E"] + 3)]


def by_tau(s):
    return {str(tau): s["base"] * (s["ratio"] if tau <= s["thr"] else 1) for tau in (0.07, 0.0501, 0.05, 0.01)}


schedules = {"steps": STEPS, **{name: rates(s) for name, s in SCHEDULES.items()}}
SCHEDULES["gamma"] = {"kind": "gamma", "gmin": 0.2, "E": 18}
schedules["gamma"] = gammas(SCHEDULES["gamma"])
SCHEDULES["step_thresh"] = {"kind": "step_thresh", "base": 3e-4, "thr": 0.05, "ratio": 0.25}
schedules["step_thresh"] = by_tau(SCHEDULES["step_thresh"])
data = {
    "inputs": {"W0": W0.tolist(), "b0": B0.tolist(), "t0": T0.item(),
               "grads": [{k: v.tolist() for k, v in g.items()} for g in GRADS]},
    "optimizer_settings": OPTIMIZERS,
    "outputs": {name: train(s) for name, s in OPTIMIZERS.items()},
    "schedule_settings": SCHEDULES,
    "schedules": schedules,
}
json.dump(data, open(sys.argv[1], "w"))

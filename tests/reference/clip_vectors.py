"""Writes tests/reference/clip/vectors.json: losses and gradients of the forward definitions by PyTorch autograd in f64.

Each worker's loss is written as FastCLIP defines it (arXiv 2407.01445): only the local factor of a similarity carries
gradient, gathered features, diagonals and normalisers are constants. Schema: inputs, cases, outputs[case][K<k>][step].
Usage: python3 clip_vectors.py OUT.json
"""
import json, math, sys
import torch

N, B, D, STEPS = 12, 8, 6, 3
torch.set_default_dtype(torch.float64)
gen = torch.Generator().manual_seed(7)
IDS = [[0, 1, 2, 3, 4, 5, 6, 7], [4, 9, 6, 11, 8, 1, 10, 3], [7, 2, 5, 0, 11, 9, 4, 8]]
unit = lambda: torch.nn.functional.normalize(torch.randn(B, D, generator=gen), dim=1)
INPUTS = [{"idx": ids, "e1": unit(), "e2": unit()} for ids in IDS]

common = {"src": "own", "eps": 1e-14, "gmin": 0.3, "E": 4, "epochs": [0, 1, 5], "rho": 6.5}
CASES = {
    "v0": {**common, "cls": "g", "mt": False, "tau": [0.08, 0.05, 0.04], "learn": True},
    "v1": {**common, "cls": "g", "mt": False, "tau": [0.07] * 3, "learn": False},
    "v3": {**common, "cls": "g", "mt": True, "tau": [0.08, 0.05, 0.03], "learn": True},
    "mbcl": {"src": "own", "cls": "o", "tau": [0.08, 0.05, 0.03]},
}


def gamma_at(c, epoch):
    if epoch == 0:
        return 1.0
    if epoch >= c["E"]:
        return c["gmin"]
    return 0.5 * (1 + math.cos(math.pi * epoch / c["E"])) * (1 - c["gmin"]) + c["gmin"]


def off_diagonal(rows, first):
    mask = torch.ones(rows, B)
    mask[torch.arange(rows), first + torch.arange(rows)] = 0
    return mask


def global_worker(c, k, b, e1, e2, t, u_old, gamma, u_all=None):
    """Loss of worker k; without u_all only its new u. e1, e2 [B, d] detached, the local rows are leaves."""
    rows = slice(k * b, (k + 1) * b)
    x1, x2 = e1[rows].clone().requires_grad_(), e2[rows].clone().requires_grad_()
    s = t.exp()
    sim = [x1 @ e2.T, x2 @ e1.T]
    diag, diag_all = (x1 * x2).sum(1), (e1 * e2).sum(1)
    mask = off_diagonal(b, k * b)
    x = [((m - diag[:, None]) * s).exp() * mask for m in sim]
    g = [m.sum(1) / (B - 1) for m in x]
    new = [gi.detach() if gamma == 1 else torch.where(o < 1e-35, gi.detach(), (1 - gamma) * o + gamma * gi.detach())
           for gi, o in zip(g, u_old)]
    if u_all is None:
        return new
    part1 = sum((gi / (u + c["eps"])).mean() for gi, u in zip(g, new))
    # All anchors against the local negatives; every diagonal and every u is a constant.
    columns = [((sim[1].T - diag_all[:, None]) * s).exp() * mask.T, ((sim[0].T - diag_all[:, None]) * s).exp() * mask.T]
    part2 = sum((m / (u + c["eps"])[:, None]).sum(1).div(b * (B - 1) / B).mean() for m, u in zip(columns, u_all))
    loss = (part1 + part2) / 2
    if c["mt"]:
        tau = 1 / s
        loss = tau.detach() * loss + c["rho"] * tau + tau * sum(u.log().mean() for u in new) / 2
    return loss, x1, x2


def run_global(c, K):
    b, out = B // K, []
    table = [torch.zeros(N), torch.zeros(N)]
    for step, data in enumerate(INPUTS):
        idx, gamma = torch.tensor(data["idx"]), gamma_at(c, c["epochs"][step])
        t = [torch.tensor(math.log(1 / c["tau"][step])).requires_grad_() for _ in range(K)]
        old = [[u[idx[k * b:(k + 1) * b]] for u in table] for k in range(K)]
        new = [global_worker(c, k, b, data["e1"], data["e2"], t[k], old[k], gamma) for k in range(K)]
        u_all = [torch.cat([n[a] for n in new]).detach() for a in (0, 1)]
        losses = [global_worker(c, k, b, data["e1"], data["e2"], t[k], old[k], gamma, u_all) for k in range(K)]
        for loss, _, _ in losses:
            loss.backward()
        for a in (0, 1):
            table[a][idx] = u_all[a]
        out.append(record([l[0] for l in losses], [l[1].grad for l in losses], [l[2].grad for l in losses],
                          [x.grad for x in t] if c["learn"] else None, K,
                          {"gamma": gamma, "u1_after": table[0].tolist(), "u2_after": table[1].tolist()}))
    return out


def run_mini_batch(c, K):
    b, out = B // K, []
    for step, data in enumerate(INPUTS):
        e1, e2 = data["e1"].clone().requires_grad_(), data["e2"].clone().requires_grad_()
        t = [torch.tensor(math.log(1 / c["tau"][step])).requires_grad_() for _ in range(K)]
        losses = []
        for k in range(K):
            rows, target = slice(k * b, (k + 1) * b), torch.arange(k * b, (k + 1) * b)
            ce = torch.nn.functional.cross_entropy
            losses.append((ce(t[k].exp() * e1[rows] @ e2.T, target) + ce(t[k].exp() * e2[rows] @ e1.T, target)) / 2)
        sum(losses).backward()
        out.append(record(losses, [e1.grad], [e2.grad], [x.grad for x in t], K, {}))
    return out


def record(losses, d1, d2, dt, K, extra):
    d1, d2 = torch.cat(d1), torch.cat(d2)
    r = {"loss_per_worker": [l.item() for l in losses], "grad_e1_raw": d1.tolist(), "grad_e2_raw": d2.tolist(),
         "grad_e1_eff": (d1 / K).tolist(), "grad_e2_eff": (d2 / K).tolist(), **extra}
    if dt is not None:
        r["grad_logscale_per_worker"] = [x.item() for x in dt]
        r["grad_logscale_eff"] = sum(x.item() for x in dt) / K
    return r


outputs = {name: {f"K{K}": (run_mini_batch if c["cls"] == "o" else run_global)(c, K) for K in (1, 2, 4)}
           for name, c in CASES.items()}
inputs = [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in i.items()} for i in INPUTS]
json.dump({"meta": {"n": N, "B": B, "d": D, "d_ref": 0, "dtype": "float64", "note": "PyTorch autograd"},
           "inputs": inputs, "cases": CASES, "outputs": outputs}, open(sys.argv[1], "w"))

"""Writes tests/reference/clip/vectors.json: losses and gradients of the forward definitions by PyTorch autograd in f64.

Each worker's loss is written as its authors define it: FastCLIP (arXiv 2407.01445; only the local factor of a similarity
carries gradient, gathered features, diagonals and normalisers are constants), DRRho-CLIP (arXiv 2505.06699; features are
gathered with gradient), SCENT (arXiv 2602.02877), OpenCLIP's and SigLIP's (arXiv 2303.15343). Schema: inputs, cases,
outputs[case][K<k>][step]; keys beyond the published vectors: cls "x" (SigLIP), mask, tau_weight, tau_grad, adam_sqrt.
Usage: python3 clip_vectors.py OUT.json
"""
import json, math, sys
import torch

N, B, D, D_REF = 12, 8, 6, 5
torch.set_default_dtype(torch.float64)
gen = torch.Generator().manual_seed(7)
IDS = [[0, 1, 2, 3, 4, 5, 6, 7], [4, 9, 6, 11, 8, 1, 10, 3], [7, 2, 5, 0, 11, 9, 4, 8]]
CAPTIONS = [[5, 6, 5, 7, 8, 6, 5, 9], [1, 1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 0, 0, 0, 0, 0]]
unit = lambda d: torch.nn.functional.normalize(torch.randn(B, d, generator=gen), dim=1)
INPUTS = [{"idx": ids, "e1": unit(D), "e2": unit(D)} for ids in IDS]
for i, captions in zip(INPUTS, CAPTIONS):
    i.update(r1=unit(D_REF), r2=unit(D_REF), captions=captions)

common = {"src": "own", "eps": 1e-14, "gmin": 0.3, "E": 4, "epochs": [0, 1, 5], "rho": 6.5}
v0 = {**common, "cls": "g", "mt": False, "tau": [0.08, 0.05, 0.04], "learn": True}
v2 = {**common, "cls": "i", "tau_init": 0.04, "lr_tau": 0.02, "rho": 7.0, "b1": 0.9, "b2": 0.98, "eps_tau": 1e-6}
v3 = {**common, "cls": "g", "mt": True, "tau": [0.08, 0.05, 0.03], "learn": True}
log = {**common, "cls": "s", "mt": True, "tau": [0.08, 0.05, 0.03], "learn": True, "eps": 1e-4}
distilled = {"ref": True, "dist": True, "dw": 0.7, "tscale": 12.0}
CASES = {
    "v0": v0,
    "v1": {**v0, "tau": [0.07] * 3, "learn": False},
    "v2": v2,
    "v2_paper": {**v2, "tau_weight": "paper"},
    "v2_without_root": {**v2, "adam_sqrt": False, "lr_tau": 1e-3},
    "v2_masked": {**v2, "mask": True},
    "v2_scent": {**v2, "scent": True, "const_gamma": 1.0},
    "v3": v3,
    "v3_paper": {**v3, "tau_grad": "paper"},
    "v3_masked": {**v3, "mask": True},
    "v3_scent": {**v3, "scent": True, "const_gamma": 1.5},
    "log": {**log, "mt": False, "tau": [0.08, 0.06, 0.05]},
    "log_constant": {**log, "sched": "constant"},
    "drrho": {**log, "ref": True, "tau": [0.01] * 3, "learn": False},
    "drrho_learn": {**log, "ref": True, "lw": 0.6},
    "drrho_paper": {**log, "ref": True, "tau_grad": "paper"},
    "drrho_scent": {**log, "ref": True, "scent": True, "const_gamma": 10.0},
    "drrho_distilled": {**log, **distilled, "lw": 0.8},
    "distilled": {**log, **distilled, "ref": False, "mt": False},
    "mbcl": {"src": "own", "cls": "o", "tau": [0.08, 0.05, 0.03]},
    "mbcl_masked": {"src": "own", "cls": "o", "tau": [0.08, 0.05, 0.03], "mask": True},
    "siglip": {"src": "own", "cls": "x", "tau": [0.1, 0.07, 0.05], "bias": -4.0},
    "siglip_masked": {"src": "own", "cls": "x", "tau": [0.1, 0.07, 0.05], "bias": -4.0, "mask": True},
}


def gamma_at(c, epoch):
    if epoch == 0:
        return 1.0
    if epoch >= c["E"] or c.get("sched") == "constant":
        return c["gmin"]
    return 0.5 * (1 + math.cos(math.pi * epoch / c["E"])) * (1 - c["gmin"]) + c["gmin"]


def negatives(c, data):
    """[B, B], 1 where a pair counts as a negative."""
    keep = 1 - torch.eye(B)
    if c.get("mask"):
        captions = torch.tensor(data["captions"])
        keep = keep * (captions[:, None] != captions[None, :])
    return keep


def fresh(c, old):
    mark = old == 0 if c["cls"] == "s" else old < 1e-35
    return mark | torch.isinf(old) | torch.isnan(old)


def moving(c, old, now, gamma):
    """Linear u, or for cls s log u."""
    if gamma == 1 and not c.get("scent"):
        return now
    log_old, log_now = (old, now) if c["cls"] == "s" else (old.log(), now.log())
    # 1 - sigmoid(x) loses the digits that sigmoid(-x) has.
    g, rest = (torch.full_like(now, gamma), 1 - gamma)
    if c.get("scent"):
        g, rest = torch.sigmoid(log_old + c["const_gamma"]), torch.sigmoid(-(log_old + c["const_gamma"]))
    mixed = rest * log_old.exp() + g * log_now.exp()
    return torch.where(fresh(c, old), now, mixed.log() if c["cls"] == "s" else mixed)


def scales(c, step, K):
    t = [torch.tensor(math.log(1 / c["tau"][step])).requires_grad_() for _ in range(K)]
    return t


# ---- linear u: FastCLIP

def log_mean(u):
    """Mean of log u; an entry never visited (its anchors had no negative yet) counts as 0."""
    return torch.where(u > 0, u.log(), torch.zeros(())).mean()


def global_worker(c, k, b, data, t, u_old, gamma, u_all=None):
    """Loss of worker k; without u_all only its new u. Features are detached, the local rows are leaves."""
    e1, e2, keep = data["e1"], data["e2"], negatives(c, data)
    rows = slice(k * b, (k + 1) * b)
    x1, x2 = e1[rows].clone().requires_grad_(), e2[rows].clone().requires_grad_()
    s = t.exp()
    sim = [x1 @ e2.T, x2 @ e1.T]
    diag, diag_all = (x1 * x2).sum(1), (e1 * e2).sum(1)
    x = [((m - diag[:, None]) * s).exp() for m in sim]
    if u_all is None:
        # An anchor without a negative says nothing of its u.
        return [torch.where(keep[rows].sum(1) > 0, moving(c, o, ((m * keep[rows]).sum(1) / (B - 1)).detach(), gamma), o)
                for m, o in zip(x, u_old)]
    new = [u[rows] for u in u_all]
    part1 = sum(((m * keep[rows]).sum(1) / (B - 1) / (u + c["eps"])).mean() for m, u in zip(x, new))
    # All anchors against the local negatives; every diagonal and every u is a constant.
    columns = [((sim[1].T - diag_all[:, None]) * s).exp() * keep[:, rows],
               ((sim[0].T - diag_all[:, None]) * s).exp() * keep[:, rows]]
    part2 = sum((m / (u + c["eps"])[:, None]).sum(1).div(b * (B - 1) / B).mean() for m, u in zip(columns, u_all))
    loss = (part1 + part2) / 2
    if c["mt"]:
        tau = 1 / s
        loss = tau.detach() * loss + c["rho"] * tau + tau * sum(log_mean(u) for u in new) / 2
    return loss, x1, x2


def paper_tau_gradient(c, k, b, data, t, u_all):
    """Of RGCL-g / 2 where u counts as constant in the denominators: rho tau + tau mean(log u) / 2, du from this batch."""
    e1, e2, keep, s = data["e1"], data["e2"], negatives(c, data), t.exp().item()
    rows, total = slice(k * b, (k + 1) * b), 0.0
    sim = e1 @ e2.T
    for m, u in ((sim, u_all[0]), (sim.T, u_all[1])):
        h = m - torch.diagonal(m)[:, None]
        p = (h * s).exp() * keep / (u + c["eps"])[:, None]
        hp = h * p
        total += (hp[rows].sum() + hp[:, rows].sum()).item() / (2 * b * (B - 1))
    mean = sum(log_mean(u[rows]).item() for u in u_all) / 2
    return 0.5 * total - (c["rho"] + mean) / s


def run_global(c, K):
    b, out = B // K, []
    table = [torch.zeros(N), torch.zeros(N)]
    for step, data in enumerate(INPUTS):
        idx, gamma = torch.tensor(data["idx"]), gamma_at(c, c["epochs"][step])
        t = scales(c, step, K)
        old = [[u[idx[k * b:(k + 1) * b]] for u in table] for k in range(K)]
        new = [global_worker(c, k, b, data, t[k], old[k], gamma) for k in range(K)]
        u_all = [torch.cat([n[a] for n in new]).detach() for a in (0, 1)]
        losses = [global_worker(c, k, b, data, t[k], None, gamma, u_all) for k in range(K)]
        for loss, _, _ in losses:
            loss.backward()
        for a in (0, 1):
            table[a][idx] = u_all[a]
        dt = [x.grad for x in t]
        if c.get("tau_grad") == "paper":
            dt = [torch.tensor(paper_tau_gradient(c, k, b, data, t[k], u_all)) for k in range(K)]
        out.append(record([l[0] for l in losses], [l[1].grad for l in losses], [l[2].grad for l in losses],
                          dt if c["learn"] else None, K, state(c, gamma, table)))
    return out


def state(c, gamma, table):
    return {"gamma": c.get("const_gamma", gamma), "u1_after": table[0].tolist(), "u2_after": table[1].tolist()}


# ---- individual temperatures: FastCLIP v2

def individual_worker(c, k, b, data, table, tau_all=None, bound_all=None, u_all=None):
    e1, e2, keep = data["e1"], data["e2"], negatives(c, data)
    rows = slice(k * b, (k + 1) * b)
    x1, x2 = e1[rows].clone().requires_grad_(), e2[rows].clone().requires_grad_()
    sim, diag, diag_all = [x1 @ e2.T, x2 @ e1.T], (x1 * x2).sum(1), (e1 * e2).sum(1)
    loss = 0
    for a in (0, 1):
        tau, bound, u = tau_all[a], bound_all[a], u_all[a]
        # The weighting of the paper's objective multiplies each anchor's terms by its temperature.
        w = tau if c.get("tau_weight") == "paper" else torch.ones_like(tau)
        here = ((sim[a] - diag[:, None]) / tau[rows, None] - bound[rows, None]).exp() * keep[rows]
        loss = loss + (w[rows] * here.sum(1) / (u[rows] + c["eps"])).sum() / (b * (B - 1))
        away = ((sim[1 - a].T - diag_all[:, None]) / tau[:, None] - bound[:, None]).exp() * keep[:, rows]
        loss = loss + (w * away.sum(1) / (u + c["eps"])).sum() / (b * (B - 1))
    return loss / 2, x1, x2


def run_individual(c, K):
    b, out = B // K, []
    names = ("u", "tau", "bound", "m_grad_tau", "v_grad_tau")
    table = [{n: torch.full((N,), c["tau_init"] if n == "tau" else 0.0) for n in names} for _ in (0, 1)]
    for step, data in enumerate(INPUTS):
        idx, epoch = torch.tensor(data["idx"]), c["epochs"][step]
        gamma, keep = gamma_at(c, epoch), negatives(c, data)
        sim = data["e1"] @ data["e2"].T
        taus, bounds, us = [], [], []
        for a, m in enumerate((sim, sim.T)):
            old = {n: table[a][n][idx] for n in names}
            z = (m - torch.diagonal(m)[:, None]) / old["tau"][:, None]
            bound = torch.maximum(old["bound"], torch.where(keep > 0, z, torch.zeros(())).amax(1).clamp_min(0))
            x = (z - bound[:, None]).exp() * keep
            g = x.sum(1) / (B - 1)
            mixed = (1 - gamma) * old["u"] * (old["bound"] - bound).exp() + gamma * g
            if c.get("scent"):  # of u itself, not of u over exp(bound)
                before, now = old["u"].log() + old["bound"], g.log() + bound
                rate, rest = torch.sigmoid(before + c["const_gamma"]), torch.sigmoid(-(before + c["const_gamma"]))
                mixed = (rest * before.exp() + rate * now.exp()) * (-bound).exp()
            u = g if gamma == 1 and not c.get("scent") else torch.where(fresh(c, old["u"]), g, mixed)
            alone = keep.sum(1) == 0
            u = torch.where(alone, old["u"] * (old["bound"] - bound).exp(), u)
            grad = -(x * z).sum(1) / ((u + c["eps"]) * (B - 1)) + (u + c["eps"]).log() + bound + c["rho"]
            grad = torch.where(alone, torch.zeros(()), grad.clamp(-5, 5))
            b1, b2 = (c["b1"], c["b2"]) if epoch else (0.0, 0.0)
            first = b1 * old["m_grad_tau"] + (1 - b1) * grad
            second = b2 * old["v_grad_tau"] + (1 - b2) * grad * grad
            mean, square = first / (1 - b1 ** (epoch + 1)), second / (1 - b2 ** (epoch + 1))
            root = square.sqrt() if c.get("adam_sqrt", True) else square
            tau = (old["tau"] - c["lr_tau"] * mean / (root + c["eps_tau"])).clamp(0.01, 1.0)
            for n, v in zip(names, (u, tau, bound, first, second)):
                table[a][n][idx] = v
            taus.append(old["tau"]), bounds.append(bound), us.append(u)
        workers = [individual_worker(c, k, b, data, table, taus, bounds, us) for k in range(K)]
        for loss, _, _ in workers:
            loss.backward()
        after = {f"{n}{a + 1}_after": table[a][n].tolist() for a in (0, 1) for n in names}
        out.append(record([w[0] for w in workers], [w[1].grad for w in workers], [w[2].grad for w in workers], None, K,
                          {"gamma": c.get("const_gamma", gamma), **after}))
    return out


# ---- log u, features gathered with gradient: DRRho-CLIP, distillation

def margins(e1, e2, r1, r2, c):
    s = e1 @ e2.T
    h = s - torch.diagonal(s)[:, None]
    if not c.get("ref"):
        return h
    q = r1 @ r2.T
    return h - (q - torch.diagonal(q)[:, None])


def run_log(c, K):
    b, out = B // K, []
    table = [torch.zeros(N), torch.zeros(N)]
    for step, data in enumerate(INPUTS):
        idx, gamma, t = torch.tensor(data["idx"]), gamma_at(c, c["epochs"][step]), scales(c, step, K)
        e1, e2 = data["e1"].clone().requires_grad_(), data["e2"].clone().requires_grad_()
        keep, s0 = negatives(c, data), math.exp(t[0].item())
        a = [margins(e1, e2, data["r1"], data["r2"], c), margins(e2, e1, data["r2"], data["r1"], c)]
        inner = [torch.logsumexp(torch.cat([s0 * m.masked_fill(keep == 0, -math.inf) - math.log(B),
                                            torch.full((B, 1), math.log(c["eps"]))], 1), 1).detach() for m in a]
        u = [moving(c, tab[idx], l, gamma) for tab, l in zip(table, inner)]
        parts, distill, losses = [], [], []
        for k in range(K):
            rows, s = slice(k * b, (k + 1) * b), t[k].exp()
            loss = 0
            for m, v in zip(a, u):
                w = (s0 * m.detach() - v[:, None]).exp() * keep
                loss = loss + (s * m * w)[rows].sum() / (b * (B - 1))
            if c["mt"]:
                tau = 1 / s
                loss = loss * tau.detach() + c["rho"] * tau + tau * sum(v[rows].mean() for v in u) / 2
            loss = loss * c.get("lw", 1.0)
            parts.append(loss)
            if c.get("dist"):
                ce = 0
                for x, y, p, q in ((e1, e2, data["r1"], data["r2"]), (e2, e1, data["r2"], data["r1"])):
                    teacher = torch.softmax(c["tscale"] * (p @ q.T), 1)[rows]
                    ce = ce - (teacher * torch.log_softmax(s * (x @ y.T), 1)[rows]).sum() / (2 * b)
                distill.append(ce * c["dw"] * ((1 / s).detach() if c["mt"] else 1))
                loss = loss + distill[-1]
            losses.append(loss)
        sum(losses).backward()
        for tab, v in zip(table, u):
            tab[idx] = v
        dt = [x.grad for x in t]
        if c.get("tau_grad") == "paper":
            dt = [torch.tensor(paper_log_gradient(c, k, b, a, u, s0)) for k in range(K)]
        extra = {**state(c, gamma, table), "part_contrastive_loss_per_worker": [p.item() for p in parts]}
        if c.get("dist"):
            extra["part_distill_loss_per_worker"] = [d.item() for d in distill]
        out.append(record(losses, [e1.grad], [e2.grad], dt if c["learn"] else None, K, extra))
    return out


def paper_log_gradient(c, k, b, a, u, s):
    """Of rho tau + tau mean(u1 + u2) / 2 with u = log(eps + (1/B) sum exp(s a)), the exponentials over the kept u."""
    rows, total = slice(k * b, (k + 1) * b), 0.0
    keep = 1 - torch.eye(B)
    for m, v in zip(a, u):
        m = m.detach()
        total += (m * (s * m - v[:, None]).exp() * keep)[rows].sum().item() / (2 * b * B)
    return total - (c["rho"] + sum(v[rows].mean().item() for v in u) / 2) / s


# ---- no u: OpenCLIP, SigLIP

def run_mini_batch(c, K):
    b, out = B // K, []
    for step, data in enumerate(INPUTS):
        e1, e2 = data["e1"].clone().requires_grad_(), data["e2"].clone().requires_grad_()
        t, out_of = scales(c, step, K), (negatives(c, data) + torch.eye(B)) == 0
        losses = []
        for k in range(K):
            rows, target = slice(k * b, (k + 1) * b), torch.arange(k * b, (k + 1) * b)
            ce = lambda x, y: torch.nn.functional.cross_entropy(
                (t[k].exp() * x[rows] @ y.T).masked_fill(out_of[rows], -math.inf), target)
            losses.append((ce(e1, e2) + ce(e2, e1)) / 2)
        sum(losses).backward()
        out.append(record(losses, [e1.grad], [e2.grad], [x.grad for x in t], K, {}))
    return out


def run_siglip(c, K):
    b, out = B // K, []
    for step, data in enumerate(INPUTS):
        e1, e2 = data["e1"].clone().requires_grad_(), data["e2"].clone().requires_grad_()
        t, bias = scales(c, step, K), [torch.tensor(c["bias"]).requires_grad_() for _ in range(K)]
        counts, sign = negatives(c, data) + torch.eye(B), 2 * torch.eye(B) - 1
        losses = []
        for k in range(K):
            rows = slice(k * b, (k + 1) * b)
            z = t[k].exp() * (e1[rows] @ e2.T) + bias[k]
            losses.append(-(torch.nn.functional.logsigmoid(sign[rows] * z) * counts[rows]).sum() / b)
        sum(losses).backward()
        out.append(record(losses, [e1.grad], [e2.grad], [x.grad for x in t], K,
                          {"grad_bias_per_worker": [x.grad.item() for x in bias]}))
    return out


def record(losses, d1, d2, dt, K, extra):
    d1, d2 = torch.cat(d1), torch.cat(d2)
    r = {"loss_per_worker": [l.item() for l in losses], "grad_e1_eff": (d1 / K).tolist(), "grad_e2_eff": (d2 / K).tolist()}
    # What is sampled once is enough: tables are those of one worker on any number.
    r.update({k: v for k, v in extra.items() if K != 2 or not k.endswith("_after")})
    if dt is not None:
        r["grad_logscale_per_worker"] = [x.item() for x in dt]
        r["grad_logscale_eff"] = sum(x.item() for x in dt) / K
    return r


RUN = {"o": run_mini_batch, "x": run_siglip, "g": run_global, "i": run_individual, "s": run_log}
outputs = {name: {f"K{K}": RUN[c["cls"]](c, K) for K in (1, 2, 4)} for name, c in CASES.items()}
inputs = [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in i.items()} for i in INPUTS]
json.dump({"meta": {"n": N, "B": B, "d": D, "d_ref": D_REF, "dtype": "float64", "note": "PyTorch autograd"},
           "inputs": inputs, "cases": CASES, "outputs": outputs}, open(sys.argv[1], "w"), separators=(",", ":"))

"""Peer arm of bench clip_cpu_step: the same CLIP model, loss and optimizer in plain PyTorch."""
import argparse, json, math, time
import torch, torch.nn as nn, torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, causal):
        b, t, w = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(b, t, w)
        x = x + self.proj(a)
        return x + self.out(F.gelu(self.fc(self.ln_2(x))))


class Clip(nn.Module):
    def __init__(self, a):
        super().__init__()
        w = a.width
        self.patch = nn.Conv2d(3, w, a.patch, a.patch, bias=False)
        self.cls = nn.Parameter(torch.randn(w) * w**-0.5)
        self.pos = nn.Parameter(torch.randn((a.image // a.patch) ** 2 + 1, w) * w**-0.5)
        self.ln_pre, self.ln_post = nn.LayerNorm(w), nn.LayerNorm(w)
        self.visual = nn.ModuleList(Block(w, w // 64) for _ in range(a.layers))
        self.vproj = nn.Parameter(torch.randn(w, a.embed) * w**-0.5)
        self.tok = nn.Embedding(a.vocab, w)
        self.tpos = nn.Parameter(torch.randn(a.context, w) * 0.01)
        self.text = nn.ModuleList(Block(w, w // 64) for _ in range(a.text_layers))
        self.ln_final = nn.LayerNorm(w)
        self.tproj = nn.Parameter(torch.randn(w, a.embed) * w**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image, ids):
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], 1) + self.pos
        x = self.ln_pre(x)
        for b in self.visual:
            x = b(x, False)
        img = F.normalize((self.ln_post(x[:, 0]) @ self.vproj).float(), dim=-1)
        t = self.tok(ids) + self.tpos
        for b in self.text:
            t = b(t, True)
        t = self.ln_final(t)[torch.arange(ids.shape[0]), ids.argmax(-1)]
        return img, F.normalize((t @ self.tproj).float(), dim=-1), self.logit_scale


def fastclip_v3(img, txt, t, u1, u2, ids, gamma, rho, eps):
    s, n = t.exp(), img.shape[0]
    tau = 1 / s
    sim = img @ txt.T
    diag = sim.diagonal()
    off = 1 - torch.eye(n)
    g = []
    for m, u in ((sim, u1), (sim.T, u2)):
        x = ((m - diag[:, None]) * s).exp() * off
        gi = x.sum(1) / (n - 1)
        old = u[ids]
        new = torch.where(old < 1e-35, gi.detach(), (1 - gamma) * old + gamma * gi.detach())
        u[ids] = new
        g.append((gi, new))
    main = sum((gi / (u + eps)).mean() for gi, u in g)
    return tau.detach() * main + rho * tau + tau * sum(u.log().mean() for _, u in g) / 2


def main():
    p = argparse.ArgumentParser()
    for k, v in dict(batch=128, image=64, patch=8, width=192, layers=6, text_layers=3, embed=192, vocab=4096,
                     context=32, length=8, steps=9, warmup=2, threads=2).items():
        p.add_argument(f"--{k}", type=int, default=v)
    p.add_argument("--arms", default="f32,compile,bf16,bf16_compile")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    for arm in a.arms.split(","):
        torch.manual_seed(0)
        model = Clip(a)
        opt = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, fused=True)
        step_model = torch.compile(model) if "compile" in arm else model
        image = torch.rand(a.batch, 3, a.image, a.image)
        ids = torch.zeros(a.batch, a.context, dtype=torch.long)
        lengths = torch.randint(a.length // 2 + 1, 3 * a.length // 2, (a.batch,))
        for i, n in enumerate(lengths):
            ids[i, :n] = torch.randint(0, a.vocab - 1, (n,))
            ids[i, n] = a.vocab - 1
        u1, u2 = torch.zeros(a.batch), torch.zeros(a.batch)
        rows = torch.arange(a.batch)
        times, losses = [], []
        for step in range(a.warmup + a.steps):
            begin = time.perf_counter()
            opt.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in arm):
                img, txt, t = step_model(image, ids)
            loss = fastclip_v3(img, txt, t, u1, u2, rows, 0.8, 6.5, 1e-14)
            loss.backward()
            opt.step()
            losses.append(loss.item())
            if step >= a.warmup:
                times.append(time.perf_counter() - begin)
        times.sort()
        print(json.dumps({"arm": arm, "step_ms": round(1e3 * times[len(times) // 2], 1),
                          "pairs_per_s": round(a.batch / times[len(times) // 2], 1), "loss": losses[-1]}), flush=True)


main()

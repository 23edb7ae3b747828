"""Peer arm of bench clip_cpu_step: the same CLIP model, loss and optimizer in plain PyTorch, 2 threads."""
import argparse
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from arm import Server, read_safetensors


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, causal):
        b, t, w = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(b, t, w)
        x = x + self.out_proj(a)
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))

    def load(self, t, prefix):
        for name in ("ln_1", "ln_2"):
            getattr(self, name).weight.data.copy_(t[f"{prefix}{name}.weight"])
            getattr(self, name).bias.data.copy_(t[f"{prefix}{name}.bias"])
        self.qkv.weight.data.copy_(t[f"{prefix}attn.in_proj_weight"])
        self.qkv.bias.data.copy_(t[f"{prefix}attn.in_proj_bias"])
        for mine, name in ((self.out_proj, "attn.out_proj"), (self.c_fc, "mlp.c_fc"), (self.c_proj, "mlp.c_proj")):
            mine.weight.data.copy_(t[f"{prefix}{name}.weight"])
            mine.bias.data.copy_(t[f"{prefix}{name}.bias"])


class Clip(nn.Module):
    """Built from the tensors of our arm (OpenCLIP's names)."""

    def __init__(self, t, heads):
        super().__init__()
        width, _, patch, _ = t["visual.conv1.weight"].shape
        text_width = t["ln_final.weight"].shape[0]

        def count(prefix):
            return len({n[len(prefix):].split(".")[0] for n in t if n.startswith(prefix)})

        def parameter(name):
            return nn.Parameter(t[name].clone())

        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.conv1.weight.data.copy_(t["visual.conv1.weight"])
        self.class_embedding = parameter("visual.class_embedding")
        self.position = parameter("visual.positional_embedding")
        self.visual_proj = parameter("visual.proj")
        self.token_embedding = nn.Embedding(*t["token_embedding.weight"].shape)
        self.token_embedding.weight.data.copy_(t["token_embedding.weight"])
        self.text_position = parameter("positional_embedding")
        self.text_projection = parameter("text_projection")
        self.logit_scale = parameter("logit_scale")
        for name, key, w in (("ln_pre", "visual.ln_pre", width), ("ln_post", "visual.ln_post", width),
                             ("ln_final", "ln_final", text_width)):
            norm = nn.LayerNorm(w)
            norm.weight.data.copy_(t[f"{key}.weight"])
            norm.bias.data.copy_(t[f"{key}.bias"])
            setattr(self, name, norm)
        self.visual = nn.ModuleList(Block(width, heads) for _ in range(count("visual.transformer.resblocks.")))
        self.text = nn.ModuleList(Block(text_width, heads) for _ in range(count("transformer.resblocks.")))
        for i, b in enumerate(self.visual):
            b.load(t, f"visual.transformer.resblocks.{i}.")
        for i, b in enumerate(self.text):
            b.load(t, f"transformer.resblocks.{i}.")

    def forward(self, image, ids, end):
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1) + self.position
        x = self.ln_pre(x)
        for b in self.visual:
            x = b(x, False)
        img = F.normalize((self.ln_post(x[:, 0]) @ self.visual_proj).float(), dim=-1)
        t = self.token_embedding(ids) + self.text_position[: ids.shape[1]]
        for b in self.text:
            t = b(t, True)
        t = self.ln_final(t)[torch.arange(ids.shape[0]), end]
        return img, F.normalize((t @ self.text_projection).float(), dim=-1)

    def groups(self, decay, lr_tau):
        with_decay, without = [], []
        for name, p in self.named_parameters():
            if name == "logit_scale":
                continue
            bare = name.endswith("bias") or "ln_" in name or name == "class_embedding"
            (without if bare else with_decay).append(p)
        return [{"params": with_decay, "weight_decay": decay}, {"params": without, "weight_decay": 0.0},
                {"params": [self.logit_scale], "weight_decay": 0.0, "lr": lr_tau}]


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
    p.add_argument("--serve")
    p.add_argument("--file")
    # trimmed: texts cut to the longest of the batch, which OpenCLIP does not do but a careful user might.
    p.add_argument("--arm", choices=["eager", "trimmed", "compile", "bf16", "bf16_compile"])
    a = p.parse_args()
    torch.set_num_threads(2)
    tensors, meta = read_safetensors(a.file)
    model = Clip(tensors, int(meta["heads"]))
    optimizer = torch.optim.AdamW(model.groups(0.2, 1e-3), lr=5e-4, betas=(0.9, 0.98), eps=1e-8, fused=True)
    step_model = torch.compile(model) if "compile" in a.arm else model
    batches = []
    for k in range(int(meta["batches"])):
        image, ids, end, sample = (tensors[f"batch.{k}.{c}"] for c in ("image", "ids", "end", "sample"))
        batches.append((image, ids[:, : int(end.max()) + 1].contiguous() if a.arm == "trimmed" else ids, end, sample))
    size = 1 + max(int(b[3].max()) for b in batches)
    u1, u2 = torch.zeros(size), torch.zeros(size)
    taken = 0

    def step():
        nonlocal taken
        image, ids, end, sample = batches[taken % len(batches)]
        taken += 1
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in a.arm):
            img, txt = step_model(image, ids, end)
        loss = fastclip_v3(img, txt, model.logit_scale, u1, u2, sample, 0.8, 6.5, 1e-14)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(100))
        return loss.item()

    Server(a.serve).run(step)


main()

"""Peer arms of bench clip_gpu_step on one GPU: OpenCLIP's own model, loss and training step (open_clip_train, amp_bf16),
eager and under torch.compile, and its loss alone. Of the package open_clip only the model's files are imported, so that
neither torchvision nor any of its other needs has to be there: PYTHONPATH names the folder that holds it."""
import argparse
import importlib
import importlib.util
import math
import sys
import time
import types

import torch
import torch.nn.functional as F

from arm import Server, read_safetensors


def stub(name, **members):
    """A module that only has to be importable."""
    try:
        importlib.import_module(name)
    except ImportError:
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        for key, value in members.items():
            setattr(sys.modules[name], key, value)


def open_clip():
    """(model, loss) without running the package's __init__."""
    stub("torchvision.ops.misc", FrozenBatchNorm2d=type("FrozenBatchNorm2d", (torch.nn.Module,), {}))
    stub("numpy", ndarray=object, log=math.log)
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        raise ImportError("no open_clip on PYTHONPATH: see tests/gpu/run pack")
    package = types.ModuleType("open_clip")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["open_clip"] = package
    model = importlib.import_module("open_clip.model")
    if not hasattr(sys.modules["numpy"], "ndim"):  # torch.compile asks whether there is a real one
        del sys.modules["numpy"]
    return model, importlib.import_module("open_clip.loss")


def groups(model, decay):
    """As open_clip_train.main makes them."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    bare = lambda n, p: p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n
    return [{"params": [p for n, p in named if bare(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not bare(n, p)], "weight_decay": decay}]


class Step:
    def __init__(self, a):
        tensors, meta = read_safetensors(a.file)
        model_code, loss_code = open_clip()
        vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
        text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
        self.model = model_code.CLIP(512, vision, text, output_dict=True).cuda()
        weights = {n: t for n, t in tensors.items() if not n.startswith("batch.")}
        self.model.load_state_dict(weights, strict=True)
        self.model.train()
        self.batches = [(tensors[f"batch.{k}.image"].cuda(), tensors[f"batch.{k}.ids"].cuda())
                        for k in range(int(meta["batches"]))]
        self.loss = loss_code.ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
        self.lr, self.warmup = float(meta["lr"]), int(meta["warmup"])
        self.optimizer = torch.optim.AdamW(groups(self.model, float(meta["weight_decay"])), lr=self.lr,
                                           betas=(0.9, 0.98), eps=1e-6)
        self.run = torch.compile(self.model) if a.arm == "compile" else self.model
        self.taken = 0

    def __call__(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * min(1.0, (self.taken + 1) / self.warmup)
        images, texts = self.batches[self.taken % len(self.batches)]
        self.taken += 1
        self.optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = self.run(images, texts)
            loss = sum(self.loss(**out, output_dict=True).values())
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return loss.detach()


class Loss:
    """Symmetric cross-entropy as OpenCLIP writes it, of f32 features."""

    def __init__(self, a):
        unit = lambda: F.normalize(torch.randn(a.rows, 512, device="cuda"), dim=-1).requires_grad_()
        self.image, self.text = unit(), unit()
        self.scale = torch.tensor(math.log(1 / 0.07), device="cuda", requires_grad=True)

    def __call__(self):
        for t in (self.image, self.text, self.scale):
            t.grad = None
        labels = torch.arange(len(self.image), device="cuda")
        scale = self.scale.exp()
        loss = (F.cross_entropy(scale * self.image @ self.text.T, labels) +
                F.cross_entropy(scale * self.text @ self.image.T, labels)) / 2
        loss.backward()
        return loss.detach()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--serve")
    p.add_argument("--file")
    p.add_argument("--rows", type=int)
    p.add_argument("--arm", choices=["eager", "compile", "loss"])
    a = p.parse_args()
    if a.arm != "loss":  # as open_clip_train does; the loss alone is compared in f32
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    step = Loss(a) if a.arm == "loss" else Step(a)
    server = Server(a.serve)
    for words in server.commands():
        if words[0] == "memory":
            server.answer({"peak_gib": torch.cuda.max_memory_allocated() / 2**30})
            continue
        # The host runs ahead within a block, and reads the losses at its end.
        begin, cpu = time.perf_counter(), time.thread_time()
        losses = [step() for _ in range(int(words[0]))]
        losses = torch.stack(losses).tolist()
        server.answer({"ms": 1e3 * (time.perf_counter() - begin), "cpu_ms": 1e3 * (time.thread_time() - cpu),
                       "losses": losses})


main()

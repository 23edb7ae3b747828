"""Peer arms of bench lora_step. base compile, base eager: the frozen base in plain torch modules, compiled layer by layer
or as it is; forward, loss a chunk at a time, backward to the embeddings. peft eager, peft graph: a training step of one
adapter of PEFT (rank 16, 7 modules, its defaults: f32 adapters) on transformers' model with random bf16 weights and
torch's fused AdamW; graph: that as a CUDA graph. PYTHONPATH names the folder that holds peft (tests/gpu/run pack)."""
import argparse
import json
import time

import torch
import torch.nn.functional as F
from torch import nn

from arm import Server

parser = argparse.ArgumentParser()
for name in ("arm", "config", "samples", "tokens", "device", "serve"):
    parser.add_argument("--" + name)
a = parser.parse_args()
c = json.loads(a.config)
samples, tokens = int(a.samples), int(a.tokens)
dtype = torch.bfloat16 if a.device == "cuda" else torch.float32
torch.manual_seed(1)
heads, kv, hidden = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"]
head_dim = c.get("head_dim") or hidden // heads


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        wide = c["intermediate_size"]
        self.norm1, self.norm2 = nn.RMSNorm(hidden, c["rms_norm_eps"]), nn.RMSNorm(hidden, c["rms_norm_eps"])
        self.q, self.o = nn.Linear(hidden, heads * head_dim, False), nn.Linear(heads * head_dim, hidden, False)
        self.k, self.v = nn.Linear(hidden, kv * head_dim, False), nn.Linear(hidden, kv * head_dim, False)
        self.gate, self.up, self.down = nn.Linear(hidden, wide, False), nn.Linear(hidden, wide, False), nn.Linear(wide, hidden, False)

    def forward(self, x, cos, sin):
        y = self.norm1(x)
        q, k, v = (m(y).view(samples, tokens, -1, head_dim).transpose(1, 2) for m in (self.q, self.k, self.v))

        def rotate(t):
            one, two = t.chunk(2, -1)
            return t * cos + torch.cat((-two, one), -1) * sin

        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(samples, tokens, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def chunk_loss(x, head, labels):
    return F.cross_entropy(F.linear(x, head).float(), labels, reduction="sum")


def base(compiled):
    with torch.device(a.device):
        torch.set_default_dtype(dtype)
        layers = nn.ModuleList(Layer() for _ in range(c["num_hidden_layers"])).requires_grad_(False)
        norm = nn.RMSNorm(hidden, c["rms_norm_eps"]).requires_grad_(False)
        embedding, head = torch.randn(c["vocab_size"], hidden), torch.randn(c["vocab_size"], hidden) * 0.02
        torch.set_default_dtype(torch.float32)
        angles = torch.arange(tokens)[:, None] / 1e4 ** (torch.arange(0, head_dim, 2) / head_dim)
        cos, sin = (torch.cat((t, t), -1).to(dtype) for t in (angles.cos(), angles.sin()))
        ids = torch.randint(c["vocab_size"], (samples, tokens))
    labels = ids.roll(-1).flatten()
    layer, loss = Layer.forward, chunk_loss
    if compiled:
        layer, loss = torch.compile(layer, fullgraph=True), torch.compile(loss, fullgraph=True)

    def step():
        x = first = F.embedding(ids, embedding).requires_grad_()
        for one in layers:
            x = layer(one, x, cos, sin)
        rows, gradients, total = norm(x).flatten(0, 1), [], 0
        leaf = rows.detach().requires_grad_()
        for r, l in zip(leaf.split(1024), labels.split(1024)):  # logits of a chunk at a time
            part = loss(r, head, l)
            gradients.append(torch.autograd.grad(part, r)[0])
            total = total + part.detach()
        torch.autograd.grad(rows, first, torch.cat(gradients))
        return total

    return step


def peft(_):
    import transformers
    from peft import LoraConfig, get_peft_model
    config = getattr(transformers, c["architectures"][0].replace("ForCausalLM", "Config"))(
        **{k: v for k, v in c.items() if k not in ("architectures", "model_type", "torch_dtype")})
    with torch.device(a.device):
        torch.set_default_dtype(dtype)
        model = getattr(transformers, c["architectures"][0])(config)
        torch.set_default_dtype(torch.float32)
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
        ids = torch.randint(c["vocab_size"], (samples, tokens))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True, capturable=a.device == "cuda")

    def step():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.detach()

    return step


def synchronize():
    if a.device == "cuda":
        torch.cuda.synchronize()


what, how = a.arm.split()
step = {"base": base, "peft": peft}[what](how == "compile")
for _ in range(3):
    last = step()
if how == "graph":
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        last = step()
    step = graph.replay
synchronize()
server = Server(a.serve)
for command in server.commands():
    if command[0] == "memory":
        server.answer({"peak_gib": torch.cuda.max_memory_allocated() / 2**30 if a.device == "cuda" else 0.0})
        continue
    n = int(command[0])
    begin, cpu = time.perf_counter(), time.thread_time()
    for _ in range(n):
        step()
    synchronize()
    server.answer({"ms": 1e3 * (time.perf_counter() - begin), "cpu_ms": 1e3 * (time.thread_time() - cpu), "losses": []})

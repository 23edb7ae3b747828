"""Peer arm of bench dlrm_step: the same DLRM in plain PyTorch, one thread: EmbeddingBag with sparse gradients, bmm, SGD."""
import argparse

import torch
import torch.nn as nn

from arm import Server, read_safetensors


def mlp(tensors, prefix, last):
    layers = []
    for i in sorted(int(n.split(".")[1]) for n in tensors if n.startswith(prefix) and n.endswith(".weight")):
        weight, bias = tensors[f"{prefix}.{i}.weight"], tensors[f"{prefix}.{i}.bias"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data, linear.bias.data = weight, bias
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*(layers if last else layers[:-1]))


class Dlrm(nn.Module):
    def __init__(self, tensors):
        super().__init__()
        tables = [tensors[f"emb_l.{k}.weight"] for k in range(sum(n.startswith("emb_l.") for n in tensors))]
        self.tables = nn.ModuleList(nn.EmbeddingBag.from_pretrained(t, freeze=False, mode="sum", sparse=True) for t in tables)
        self.bottom, self.top = mlp(tensors, "bot_l", True), mlp(tensors, "top_l", False)
        pairs = [(i, j) for i in range(len(tables) + 1) for j in range(i)]
        self.left, self.right = (torch.tensor(p) for p in zip(*pairs))

    def forward(self, dense, ids, offsets):
        x = self.bottom(dense)
        rows = [table(ids[k], offsets) for k, table in enumerate(self.tables)]
        stacked = torch.cat([x, *rows], 1).view(x.shape[0], -1, x.shape[1])
        products = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.left, self.right]
        return self.top(torch.cat([x, products], 1)).squeeze(1)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--serve")
    p.add_argument("--file")
    a = p.parse_args()
    torch.set_num_threads(1)
    tensors, meta = read_safetensors(a.file)
    batches = [(tensors[f"batch.{k}.dense"], tensors[f"batch.{k}.ids"].t().long().contiguous(), tensors[f"batch.{k}.label"])
               for k in range(int(meta["batches"]))]
    model = Dlrm(tensors)
    offsets = torch.arange(batches[0][0].shape[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.BCEWithLogitsLoss()
    taken = 0

    def step():
        nonlocal taken
        dense, ids, label = batches[taken % len(batches)]
        taken += 1
        optimizer.zero_grad(set_to_none=True)
        loss = criterion(model(dense, ids, offsets), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    Server(a.serve).run(step)


main()

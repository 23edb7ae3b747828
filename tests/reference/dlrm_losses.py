"""Losses of the DLRM model in plain PyTorch: python dlrm_losses.py > dlrm_losses.json

Written from the model's equations (arXiv 1906.00091): bottom MLP, EmbeddingBag sums, dot interaction of all pairs below
the diagonal, top MLP, binary cross-entropy, SGD. Weights and samples come from one formula, which the test repeats.
"""
import json
import math

import torch

DENSE, DIM, BATCH, STEPS, LR = 13, 8, 64, 100, 0.1
ROWS = [1001, 583, 2014, 1221, 305, 24, 1002, 633, 3, 1010, 1001, 1836, 1001, 27, 1002, 1547, 10, 1001, 1001, 4, 1705,
        18, 15, 1029, 105, 1015]
BOTTOM, TOP = [DENSE, 32, 16, DIM], [DIM + 27 * 26 // 2, 32, 16, 1]


def mixed(x):  # SplitMix64
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def unit(stream, k):  # [0, 1)
    return (mixed((stream << 32) + k) >> 40) / float(1 << 24)


def weights(stream, shape, bound):
    n = math.prod(shape)
    return torch.tensor([bound * (2 * unit(stream, k) - 1) for k in range(n)], dtype=torch.float64).float().view(shape)


class Dlrm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        stream = 1

        def mlp(widths, last):
            nonlocal stream
            layers = []
            for i, (m, n) in enumerate(zip(widths, widths[1:])):
                linear = torch.nn.Linear(m, n)
                linear.weight.data = weights(stream, (n, m), 1 / math.sqrt(m))
                linear.bias.data = weights(stream + 1, (n,), 0.1)
                stream += 2
                layers += [linear] + ([torch.nn.ReLU()] if last or i + 2 < len(widths) else [])
            return torch.nn.Sequential(*layers)

        self.bottom, self.top = mlp(BOTTOM, True), mlp(TOP, False)
        self.tables = torch.nn.ModuleList()
        for rows in ROWS:
            bag = torch.nn.EmbeddingBag(rows, DIM, mode="sum")
            bag.weight.data = weights(stream, (rows, DIM), 1 / math.sqrt(rows) + 0.1)
            stream += 1
            self.tables.append(bag)
        self.pairs = torch.tril_indices(27, 27, -1)

    def forward(self, dense, ids):
        x = self.bottom(dense)
        t = torch.stack([x] + [bag(ids[:, k : k + 1]) for k, bag in enumerate(self.tables)], 1)
        z = torch.bmm(t, t.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([x, z], 1)).squeeze(1)


def batch(step):
    dense, ids, label = [], [], []
    for i in range(BATCH):
        n = step * BATCH + i
        dense.append([3 * unit(1000, n * DENSE + j) for j in range(DENSE)])
        # Few rows are frequent: samples of one batch share them.
        ids.append([int(ROWS[t] * unit(2000 + t, n) ** 4) for t in range(len(ROWS))])
        label.append(float(unit(3000, n) < 0.2 + 0.2 * (ids[-1][5] < 2) + 0.1 * dense[-1][0]))
    return torch.tensor(dense), torch.tensor(ids), torch.tensor(label)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Dlrm()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    losses = []
    for step in range(STEPS):
        dense, ids, label = batch(step)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(dense, ids), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(json.dumps({"torch": torch.__version__, "rows": ROWS, "losses": losses}))


main()

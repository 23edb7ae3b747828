"""The network of recipes/transformer in PyTorch, operator by operator: weights by the same names, under autocast the same
casts."""
import torch.nn as nn
import torch.nn.functional as F

EPS = 1e-5


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, t):
        """x [b * t, width] of sequences of t tokens."""
        n, w = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(n // t, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = x + self.out(mixed.transpose(1, 2).reshape(n, w))
        return y + self.down(F.gelu(self.up(self.norm_2(y))))


class Transformer(nn.Module):
    def __init__(self, weights, heads):
        """weights: tensors by name, for their shapes."""
        super().__init__()
        vocab, width = weights["tokens"].shape
        self.tokens = nn.Parameter(weights["tokens"].clone())
        self.positions = nn.Parameter(weights["positions"].clone())
        layers = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("blocks."))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, vocab)

    def forward(self, tokens):
        """tokens [b, context + 1] -> the mean cross-entropy of the next token."""
        t = len(self.positions)
        x = (F.embedding(tokens[:, :t], self.tokens) + self.positions).view(-1, self.positions.shape[1])
        for block in self.blocks:
            x = block(x, t)
        return F.cross_entropy(self.head(self.norm(x)), tokens[:, 1:].reshape(-1))

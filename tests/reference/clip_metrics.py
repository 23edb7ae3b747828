#!/usr/bin/env python3
"""Writes tests/reference/clip/metrics.json: what the evaluation code of open_clip_train and clip_benchmark (and
scikit-learn's logistic regression) says of features that tests/unit/clip_metrics_test.cpp makes by the same formula.

Needs open_clip_torch, clip_benchmark, scikit-learn.  usage: clip_metrics.py > tests/reference/clip/metrics.json
"""
import json
import sys
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore")


def mixed(seed, rows, width):
    """[rows, width] numbers in [-1, 1), exact in f64."""
    with np.errstate(over="ignore"):
        i = np.arange(rows, dtype=np.uint64)[:, None] * np.uint64(6364136223846793005)
        j = np.arange(width, dtype=np.uint64)[None, :] * np.uint64(1442695040888963407)
        x = i + j + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ (x >> np.uint64(33))) * np.uint64(factor)
        x = x ^ (x >> np.uint64(33))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1


def unit(x):
    """f32 rows of unit length."""
    return torch.tensor(x / np.sqrt((x * x).sum(1, keepdims=True)), dtype=torch.float32)


def around(base, owner, seed, noise):
    return unit(base[owner] + noise * mixed(seed, len(owner), base.shape[1]))


def open_clip_case():
    from open_clip_train.train import get_clip_metrics
    base = mixed(1, 400, 24)
    return get_clip_metrics(unit(base), around(base, np.arange(400), 2, 1.6), torch.tensor(100.0))


class Loader:
    """Batches of (images, texts) whose features stand in for pixels and tokens."""

    def __init__(self, images, texts):
        self.batches = [(images[i : i + 64], texts[i : i + 64]) for i in range(0, len(images), 64)]

    def __iter__(self):
        return iter(self.batches)


class Features(torch.nn.Module):
    encode_image = staticmethod(lambda x: x)
    encode_text = staticmethod(lambda x: x)


def clip_benchmark_retrieval_case():
    from clip_benchmark.metrics import zeroshot_retrieval
    base = mixed(3, 150, 24)
    counts = [1 + i % 5 for i in range(150)]
    owner = np.repeat(np.arange(150), counts)
    texts = around(base, owner, 4, 1.8)
    each = torch.split(texts, counts)
    return zeroshot_retrieval.evaluate(Features(), Loader(unit(base), each), torch.stack, "cpu", amp=False,
                                       recall_k_list=[1, 5, 10])


def labels_of(rows, classes):
    return (np.arange(rows) * 7 + np.arange(rows) ** 2 // 11) % classes


def clip_benchmark_classification_case():
    from clip_benchmark.metrics import zeroshot_classification
    zeroshot_classification.float = lambda x: float(np.asarray(x).item())  # numpy 2.4 has no float() of an array of one
    classes, templates = 23, 3
    base = mixed(5, classes, 24)
    prompts = around(base, np.repeat(np.arange(classes), templates), 6, 0.7)
    labels = labels_of(500, classes)
    images = around(base, labels, 7, 1.9)
    loader = Loader(images, torch.tensor(labels))
    loader.dataset = type("Set", (), {"classes": list(range(classes))})
    rows = {c: prompts[c * templates : (c + 1) * templates] for c in range(classes)}
    forms = {c: [(c, t) for t in range(templates)] for c in range(classes)}
    return zeroshot_classification.evaluate(Features(), loader, lambda texts: torch.stack([rows[c][t] for c, t in texts]),
                                            list(range(classes)), forms, "cpu", amp=False)


def logistic_regression_case():
    from sklearn.linear_model import LogisticRegression
    classes = 7
    base = mixed(8, classes, 12)
    labels = labels_of(600, classes)
    x = around(base, labels, 9, 2.2).double().numpy()
    cases = []
    for c in (0.1, 10.0, 1000.0):
        fit = LogisticRegression(C=c, max_iter=10000, tol=1e-10).fit(x[:400], labels[:400])
        p = fit.predict_proba(x)
        weight, bias = fit.coef_ - fit.coef_.mean(0), fit.intercept_ - fit.intercept_.mean()
        loss = -np.log(p[np.arange(400), labels[:400]]).mean() + (weight**2).sum() / (2 * c * 400)
        cases.append({"c": c, "objective": loss, "weight": weight.tolist(), "bias": bias.tolist(),
                      "test_accuracy": float((fit.predict(x[400:]) == labels[400:]).mean())})
    return cases


def main():
    result = {"open_clip": open_clip_case(), "clip_benchmark_retrieval": clip_benchmark_retrieval_case(),
              "clip_benchmark_classification": clip_benchmark_classification_case(),
              "logistic_regression": logistic_regression_case()}
    json.dump(result, sys.stdout, indent=1, default=float)
    print()


if __name__ == "__main__":
    main()

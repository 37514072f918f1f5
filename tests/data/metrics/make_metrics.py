#!/usr/bin/env python3
"""Figures of merit as scikit-learn, SciPy and NumPy have them, for tests/metrics.rs and src/metrics/tsne.rs.

    pip install scikit-learn scipy numpy
    python make_metrics.py            # writes scores.json, temperature.json, bootstrap.json, tsne.json beside it
"""

import json
import warnings
from pathlib import Path

import numpy as np
import scipy.optimize
import scipy.stats
from scipy.spatial.distance import squareform
from sklearn import metrics
from sklearn.manifold import TSNE, _t_sne

warnings.filterwarnings("ignore")
HERE = Path(__file__).parent
BINS = 15


def write(name, value):
    (HERE / name).write_text(json.dumps(value) + "\n")


def short(array):
    """Seven digits: enough for what is compared, and a small file."""
    return [[float(f"{v:.7g}") for v in row] for row in array]


def softmax(z, t=1.0):
    z = np.asarray(z, np.float64) / t
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def ece(y, p):
    """Guo et al. 2017, with bins (low, high]."""
    confidence, right = p.max(1), p.argmax(1) == y
    edges = np.arange(1, BINS) / BINS
    which = np.searchsorted(edges, confidence, side="left")
    total = 0.0
    for b in range(BINS):
        of = which == b
        if of.any():
            total += of.mean() * abs(right[of].mean() - confidence[of].mean())
    return total


def scores(y, p, classes):
    labels = list(range(classes))
    called = p.argmax(1)
    auc = [metrics.roc_auc_score(y == c, p[:, c]) if 0 < (y == c).sum() < len(y) else None for c in labels]
    precision, recall, f1, support = metrics.precision_recall_fscore_support(y, called, labels=labels, zero_division=0)
    onehot = np.eye(classes)[y]
    return {
        "confusion": metrics.confusion_matrix(y, called, labels=labels).tolist(),
        "accuracy": metrics.accuracy_score(y, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, called),
        "macro_f1": metrics.f1_score(y, called, labels=labels, average="macro", zero_division=0),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "f1": f1.tolist(),
        "support": support.tolist(),
        "auc": auc,
        "ece": ece(y, p),
        "nll": metrics.log_loss(y, p, labels=labels),
        "brier": float(((p - onehot) ** 2).sum(1).mean()),
    }


def score_cases():
    rng = np.random.default_rng(1)
    cases = []
    # subjects, classes, skill, classes that occur, logits rounded to (ties)
    table = [
        (1, 2, 1.0, [0], None),
        (2, 2, 0.0, [0, 1], None),
        (7, 3, 1.0, [0, 1, 2], 1.0),
        (30, 3, 0.5, [0, 2], None),
        (64, 3, 2.0, [0, 1, 2], 0.5),
        (65, 5, 1.5, [0, 1, 2, 3, 4], None),
        (200, 5, 3.0, [1, 3, 4], 0.25),
        (333, 2, 0.3, [0, 1], 0.5),
        (500, 3, 1.0, [0, 1, 2], None),
        (12, 4, 9.0, [0, 1, 2, 3], None),
    ]
    for n, classes, skill, occurring, step in table:
        y = rng.choice(occurring, n)
        z = rng.normal(size=(n, classes)) + skill * np.eye(classes)[y]
        if step:
            z = np.round(z / step) * step
        p = softmax(z)
        cases.append({"classes": classes, "truth": y.tolist(), "probabilities": p.tolist(), **scores(y, p, classes)})
    write("scores.json", cases)


def temperature_cases():
    rng = np.random.default_rng(2)
    cases = []
    for n, classes, skill, scale in [(20, 2, 1.0, 1.0), (50, 3, 1.5, 4.0), (400, 3, 1.0, 0.2), (300, 5, 2.0, 8.0), (150, 3, 0.6, 1.0)]:
        y = rng.integers(classes, size=n)
        z = ((rng.normal(size=(n, classes)) + skill * np.eye(classes)[y]) * scale).astype(np.float32)
        nll = lambda b: -np.log(softmax(z, 1 / b)[np.arange(n), y]).mean()
        best = scipy.optimize.minimize_scalar(nll, bounds=(1 / 20, 20), method="bounded", options={"xatol": 1e-12})
        t = 1 / best.x
        p = softmax(z, t)
        cases.append({
            "truth": y.tolist(), "logits": z.tolist(), "temperature": t, "nll_before": nll(1.0), "nll_after": best.fun,
            "ece_before": ece(y, softmax(z)), "ece_after": ece(y, p), "brier_after": float(((p - np.eye(classes)[y]) ** 2).sum(1).mean()),
        })
    write("temperature.json", cases)


def bootstrap_cases():
    """Accuracy: the exact distribution of stratified draws, a sum of binomials. Area: NumPy's own 20,000 draws."""
    rng = np.random.default_rng(3)
    cases = []
    for counts, skill in [((40, 30, 20), 1.0), ((15, 60), 0.8), ((25, 25, 25, 25), 2.0)]:
        classes = len(counts)
        y = np.repeat(np.arange(classes), counts)
        p = softmax(rng.normal(size=(len(y), classes)) + skill * np.eye(classes)[y])
        right = p.argmax(1) == y
        pmf = np.ones(1)
        for c, n in enumerate(counts):
            pmf = np.convolve(pmf, scipy.stats.binom.pmf(np.arange(n + 1), n, right[y == c].mean()))
        cdf = np.cumsum(pmf)
        accuracy = [float(np.searchsorted(cdf, q)) / len(y) for q in (0.025, 0.975)]
        places = [np.flatnonzero(y == c) for c in range(classes)]
        areas, eces = [], []
        for _ in range(20000):
            i = np.concatenate([rng.choice(of, len(of)) for of in places])
            ranks = scipy.stats.rankdata(p[i, 0])
            of = y[i] == 0
            n1, n0 = of.sum(), (~of).sum()
            areas.append((ranks[of].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))
            eces.append(ece(y[i], p[i]))
        cases.append({
            "classes": classes, "truth": y.tolist(), "probabilities": p.tolist(), "accuracy": accuracy,
            "auc_0": np.quantile(areas, [0.025, 0.975]).tolist(), "ece": np.quantile(eces, [0.025, 0.975]).tolist(),
        })
    write("bootstrap.json", cases)


def tsne_cases():
    rng = np.random.default_rng(4)
    cases = []
    for n, d, groups, perplexity in [(12, 3, 1, 11 / 3), (40, 8, 3, 13.0), (91, 20, 4, 30.0)]:
        x = rng.normal(size=(n, d)) + 4 * rng.normal(size=(groups, d))[rng.integers(groups, size=n)]
        x = x.round(3).astype(np.float32)
        distances = metrics.pairwise_distances(x, metric="euclidean", squared=True)
        p = _t_sne._joint_probabilities(distances, perplexity, 0)
        y = rng.normal(size=(n, 2)).round(3)
        divergence, gradient = _t_sne._kl_divergence(y.ravel(), p, 1, n, 2)
        fits = [TSNE(method="exact", perplexity=perplexity, init="random", random_state=s).fit(x) for s in range(5)]
        cases.append({
            "points": short(x), "perplexity": perplexity, "affinities": short(squareform(p)), "layout": y.tolist(),
            "divergence": float(divergence), "gradient": short(gradient.reshape(n, 2)),
            "usual_divergence": float(np.median([f.kl_divergence_ for f in fits])),
        })
    write("tsne.json", cases)


score_cases()
temperature_cases()
bootstrap_cases()
tsne_cases()

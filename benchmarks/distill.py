"""The light predictor on pairs of your own: speed, error, coverage, and what active choice saves.

Run as: python benchmarks/distill.py PAIRS.parquet [--quick]. The file holds pairs with the columns
score_chosen and score_rejected (UltraFeedback's form); a synthetic panel of three teachers and
three prompts answers about them, driven by the score gap. Prints Markdown tables and the machine
first; machines drift, so compare within one run only.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from sp2dpo_ray.config.distill import DistillSection
from sp2dpo_ray.core.pairs import Pair, read_pairs
from sp2dpo_ray.core.schedule.agreement import spearman
from sp2dpo_ray.core.schedule.mapping import BetaMap
from sp2dpo_ray.distill.choice import at_random
from sp2dpo_ray.distill.figures import figures_of
from sp2dpo_ray.distill.frontier import CHOICES, Panel, frontier, markdown
from sp2dpo_ray.distill.predictor import Predictor, split_by, train
from sp2dpo_ray.distill.targets import Targets
from sp2dpo_ray.distill.texts import Texts, texts_of_pairs

SECTION = DistillSection()
ORIGIN: dict[str, Any] = {
    "teachers": [], "prompts": "", "variants": [], "redact": False, "lambda_id": "",
    "categories": [],
}  # fmt: skip
WIDTH = 0.27  # of the paper's envelope
TEACHERS, VARIANTS = 3, 3
SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)


def read(path: Path, limit: int | None) -> tuple[Texts, list[str], np.ndarray]:
    table = pq.read_table(path)
    if limit:  # files are often sorted by their source
        table = table.take(np.random.default_rng(0).permutation(table.num_rows)[:limit])
    pairs, gaps = [], []
    scores = table["score_chosen"].to_numpy() - table["score_rejected"].to_numpy()
    for pair, gap in zip(read_pairs(table), scores, strict=True):
        if isinstance(pair, Pair):
            pairs.append(pair)
            gaps.append(gap)
    return texts_of_pairs(pairs), [f"{i}" for i in range(len(pairs))], np.array(gaps)


def answers(gap: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """magnitude, confidence (N, J, K) and categories (N, 6) of the synthetic panel: confidence a
    logistic of the score gap, magnitude its tanh, with noise of the pair, the teacher and the
    prompt; the category a noisy band of the gap."""
    draw = np.random.default_rng(seed)
    shape = (len(gap), TEACHERS, VARIANTS)
    noise = 0.6 * draw.normal(size=shape) + 0.5 * draw.normal(size=(len(gap), TEACHERS, 1))
    confidence = 1 / (1 + np.exp(-(0.9 * gap[:, None, None] + noise)))
    magnitude = np.tanh(gap / 3)[:, None, None] + 0.1 + 0.1 * draw.normal(size=shape)
    band = np.digitize(gap + draw.normal(size=len(gap)), (0.5, 1.2, 2.2, 3.5, 5.0))
    return np.clip(magnitude, 0, 1), confidence, np.eye(6)[5 - band]


def targets_of(magnitude: np.ndarray, confidence: np.ndarray, categories: np.ndarray) -> Targets:
    def ensembled(values: np.ndarray) -> np.ndarray:
        return np.median(values, axis=2).mean(axis=1)

    return Targets(
        pa.array([f"{i}" for i in range(len(magnitude))]),
        ensembled(magnitude * confidence), ensembled(confidence),
        ensembled(magnitude * (1 - confidence)), categories,
    )  # fmt: skip


def worth(texts: Texts, targets: Targets, keys: list[str], what: str) -> Predictor:
    start = time.perf_counter()
    split = split_by(keys, SECTION)
    predictor = train(texts, targets, split, SECTION, ORIGIN)
    seconds = time.perf_counter() - start
    found = predictor.predict(texts.take(split.test))
    figures = figures_of(found, texts, targets, split, WIDTH)
    print(f"\n## {what} ({len(texts):,} pairs, {len(split.test):,} of them to test)\n")
    print("| | error of beta | root mean square | Spearman |\n|---|---:|---:|---:|")
    for title, key, rank in (
        ("predictor", "", figures["spearman"]),
        ("length difference", "_length", figures["spearman_length"]),
        ("constant", "_constant", None),
    ):
        told = "" if rank is None else f"{rank:.3f}"
        print(f"| {title} | {figures['mae' + key]:.4f} | {figures['rmse' + key]:.4f} | {told} |")
    print(f"\nTraining, features included: {seconds:.1f} s. 90 % intervals hold "
          f"{figures['coverage']:.1%}, mean width {figures['width']:.4f} of beta. Category "
          f"{figures['category_accuracy']:.1%} right, the most frequent alone "
          f"{figures['category_accuracy_constant']:.1%}.", flush=True)  # fmt: skip
    return predictor


@ray.remote(num_cpus=1)
class Speaker:
    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, texts: Texts) -> int:
        return len(self._predictor.predict(texts, threads=1))


def speed(texts: Texts, predictor: Predictor, rounds: int) -> None:
    part = texts.slice(0, min(len(texts), 20_000))
    pieces = [part.slice(start, 2_000) for start in range(0, len(part), 2_000)]
    one, both = [], []
    actors = [Speaker.remote(predictor) for _ in range(2)]
    ray.get([actor.predict.remote(pieces[0]) for actor in actors])
    references = [ray.put(piece) for piece in pieces]
    for _ in range(rounds):
        start = time.perf_counter()
        for piece in pieces:
            predictor.predict(piece, threads=1)
        one.append(len(part) / (time.perf_counter() - start))
        start = time.perf_counter()
        ray.get([actors[i % 2].predict.remote(piece) for i, piece in enumerate(references)])
        both.append(len(part) / (time.perf_counter() - start))
    print("\n## Speed (pairs a second, texts in memory, median)\n")
    print(f"| one process of one thread | two Ray actors of one |\n|---:|---:|\n"
          f"| {statistics.median(one):,.0f} | {statistics.median(both):,.0f} |")  # fmt: skip


def savings(panel: Panel) -> None:
    """Error of beta over all pairs against calls, and what active choice needs for the same."""
    points = frontier(panel, SECTION, BetaMap(), SHARES)
    print("\n## What asking less costs\n")
    print(markdown(points))
    by_choice = {
        choice: [p for p in points if p.choice == choice and not p.economy] for choice in CHOICES
    }
    errors = [-point.error for point in by_choice["active"]]
    for point in by_choice["random"]:
        needed = np.interp(-point.error, errors, [p.calls for p in by_choice["active"]])
        print(f"- random choice's error with {point.calls:,} calls takes active choice "
              f"{needed:,.0f}: {needed / point.calls:.0%}", flush=True)  # fmt: skip


def seen_beforehand(texts: Texts, targets: Targets, ids: list[str]) -> None:
    """How much of the error can be seen beforehand, with a fifth of the pairs asked at random."""
    asked = at_random(ids, len(ids) // 5, 0)
    split = split_by([ids[row] for row in asked], SECTION)
    predictor = train(texts.take(asked), targets.take(asked), split, SECTION, ORIGIN)
    rest = np.setdiff1d(np.arange(len(ids)), asked)
    found = predictor.predict(texts.take(rest))
    error = np.abs(found.gap - targets.gap[rest])
    tenth = len(rest) // 10
    told = error[np.argsort(-found.width)[:tenth]].mean() / error.mean()
    best = np.sort(error)[-tenth:].mean() / error.mean()
    print(f"\nOf the pairs that were not asked about, width and error correlate with rho "
          f"{spearman(found.width, error):.2f}: the tenth with the widest intervals errs "
          f"{told:.2f} times the mean, the tenth that errs most {best:.2f} times.")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--quick", action="store_true", help="6,000 pairs")
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores")
    texts, ids, gap = read(given.pairs, 6_000 if given.quick else None)
    magnitude, confidence, categories = answers(gap)
    targets = targets_of(magnitude, confidence, categories)
    prompts = texts.prompt.to_pylist()
    print(f"{len(texts):,} pairs, {len(set(prompts)):,} prompts")
    worth(texts, targets, prompts, "Prompts that training has not seen")
    predictor = worth(texts, targets, ids, "Other pairs of the same data set")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    speed(texts, predictor, 1 if given.quick else 5)
    ray.shutdown()
    savings(Panel(texts, targets, magnitude * confidence))
    seen_beforehand(texts, targets, ids)


if __name__ == "__main__":
    main()

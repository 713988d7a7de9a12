"""Predictions in the annotations table: in the place of pairs that are not whole on record."""

from __future__ import annotations

from typing import Any

from sp2dpo_ray.annotate.table import mark_predicted

TOLD = {"category": "Style", "magnitude": 0.5, "confidence": 1.0, "served_model": "predictor/x",
        "detail": "gap within [0.4, 0.6]"}  # fmt: skip


def row(pair: str, variant: str, outcome: str, **more: Any) -> dict[str, Any]:
    return {"prompt_id": pair, "split": "train", "teacher": "a", "variant": variant, "key": "k",
            "outcome": outcome} | more  # fmt: skip


def test_whole_pairs_keep_their_answers_and_others_are_predicted_as_a_whole() -> None:
    rows = [
        *(row("whole", v, "ok", magnitude=0.1, text="{}") for v in ("v1", "v2")),
        row("half", "v1", "ok", magnitude=0.1, text="{}", prompt_tokens=7),
        row("half", "v2", "not_attempted"),
        *(row("none", v, "not_attempted") for v in ("v1", "v2")),
        *(row("asked", v, "not_attempted") for v in ("v1", "v2")),
    ]
    mark_predicted(rows, [TOLD, TOLD, TOLD, None], 2)
    assert [r["outcome"] for r in rows] == ["ok"] * 2 + ["predicted"] * 4 + ["not_attempted"] * 2
    assert rows[2] == row("half", "v1", "predicted") | TOLD
    assert rows[5]["variant"] == "v2"

"""Stage `audit`: a sheet of the pairs most worth a person's look, and what came back of it.

In: `pairs/`, `schedule/`; with verdicts, the filled-in sheet. Out: `audit/` with the sheet, or
`verdicts/` with the agreement between people, labels and teachers. Invariant: the list depends on
schedule and configuration alone, so a sheet that was sent out stays valid.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.core.artifact import Draft, open_artifact
from sp2dpo_ray.core.files import AGREEMENT, AUDIT_LIST, AUDIT_SHEET, TRAIN, VERDICTS
from sp2dpo_ray.core.hashing import sha256_file
from sp2dpo_ray.core.pairs import Pair, pairs_from
from sp2dpo_ray.core.schedule.audit import audit_list, columns_read
from sp2dpo_ray.core.schedule.columns import DEFAULT_BETA, ENSEMBLE
from sp2dpo_ray.core.schedule.published import read_columns
from sp2dpo_ray.core.schedule.verdicts import agreement, read_verdicts, write_sheet
from sp2dpo_ray.errors import ConfigError
from sp2dpo_ray.run import Run, Summary

TO_FILL_IN = ("verdict", "true_category", "note")


def audit(run: Run) -> Summary:
    """Write the sheet."""
    settings = run.config.audit.model_dump(mode="json")
    inputs = {"prepare": run.path("pairs"), "schedule": run.path("schedule")}
    provenance = run.provenance("audit", settings, inputs)

    def make(draft: Draft) -> None:
        panel, chosen = run.config.panel, run.config.audit
        table = read_columns(run.path("schedule"), columns_read(panel))
        listed = audit_list(table, panel, each=chosen.each, sample=chosen.sample, seed=chosen.seed)
        draft.write_table(AUDIT_LIST, listed)
        pairs = {p.prompt_id: p for p in pairs_from(pq.read_table(run.pairs_file(TRAIN)))}
        _write(draft.path / AUDIT_SHEET, listed, pairs, panel.teachers)
        reasons = Counter(name for why in listed["why"].to_pylist() for name in why.split())
        draft.summary |= {"pairs": listed.num_rows, "reasons": dict(reasons)}

    summary = run.publish_once(run.path("audit"), provenance, make)
    return summary | {"sheet": str(run.path("audit", AUDIT_SHEET))}


def _write(path: Path, listed: pa.Table, pairs: dict[str, Pair], teachers: tuple[str, ...]) -> None:
    shown = ["why", DEFAULT_BETA, "category", "teacher_std"]
    shown += [
        f"{what}_{teacher}_{ENSEMBLE}"
        for teacher in teachers
        for what in ("category", "magnitude", "confidence")
    ]
    rows = (
        [
            row["prompt_id"],
            *_texts(pairs[row["prompt_id"]]),
            *("" for _ in TO_FILL_IN),
            *(round(value, 4) if isinstance(value, float) else value
              for value in (row[name] for name in shown)),
        ]
        for row in listed.to_pylist()
    )  # fmt: skip
    # what the panel said stands last: hide it, and the verdict is a person's own
    head = ["prompt_id", "prompt", "chosen", "rejected", *TO_FILL_IN, *shown]
    write_sheet(path, head, rows)


def _texts(pair: Pair) -> tuple[str, str, str]:
    return pair.prompt_text, pair.chosen, pair.rejected


def import_verdicts(run: Run, sheet: Path) -> Summary:
    """Read a filled-in sheet and measure agreement with it."""
    if not sheet.is_file():
        raise ConfigError(f"--import {sheet}: no such file")
    provenance = run.provenance(
        "verdicts", {"sheet": sha256_file(sheet)}, {"audit": run.path("audit")}
    )
    open_artifact(run.path("audit"))

    def make(draft: Draft) -> None:
        verdicts = read_verdicts(sheet)
        listed = pq.read_table(run.path("audit", AUDIT_LIST)).to_pylist()
        found = agreement(verdicts, listed, run.config.panel.teachers)
        rows = pa.Table.from_pylist([asdict(verdict) for verdict in verdicts], schema=SCHEMA)
        draft.write_table(VERDICTS, rows)
        (draft.path / AGREEMENT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        draft.summary |= found

    return run.publish_once(run.path("verdicts"), provenance, make)


SCHEMA = pa.schema([(name, pa.string()) for name in ("prompt_id", "verdict", "category", "note")])

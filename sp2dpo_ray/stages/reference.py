"""Stage `reference`: log-probabilities of the frozen student, once for every arm.

In: `pairs/`, `student/`. Out: `reference/<key>/`. Invariant: the key knows student, tokenizer,
template, truncation, pair texts and how it is computed (types, layout, kernels), and never beta,
learning rate or output folder.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo_ray.console import bar
from sp2dpo_ray.core.artifact import Draft, Provenance
from sp2dpo_ray.core.files import EVAL, REFERENCE, TRAIN
from sp2dpo_ray.core.pairs import PAIR_FIELDS
from sp2dpo_ray.modeling.encode import Encoding
from sp2dpo_ray.reference.parts import Parts
from sp2dpo_ray.reference.pipeline import ReferenceSpec, reference_logps
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.student import student_ref


def reference(run: Run) -> Summary:
    """Log-probabilities of the frozen student, once for every arm."""
    train = run.config.train
    provenance = _reference_provenance(run)

    def make(draft: Draft) -> None:
        start = time.perf_counter()
        names = [field.name for field in PAIR_FIELDS]
        pairs = pa.concat_tables(
            [pq.read_table(run.pairs_file(split), columns=names) for split in (TRAIN, EVAL)]
        )
        spec = ReferenceSpec(
            student_ref(run),
            Encoding(**run.config.scoring["encoding"]),
            *train.weights_of(run.config.student.lora),
            train.tokens_per_batch,
            train.layout,
            train.head_mib << 20,
            train.varlen_attention,
            train.least_workers,
            train.gpus_per_worker,
        )
        parts = Parts(run.path("reference", f".{provenance.key[:16]}-parts"))
        with bar("reference: pairs", pairs.num_rows) as advance:
            table = reference_logps(pairs, spec, parts, progress=advance)
        draft.write_table(REFERENCE, table)
        parts.discard()
        draft.summary |= {
            "pairs": table.num_rows,
            "tokens": sum(
                pc.sum(pc.list_value_length(table[name])).as_py() or 0
                for name in ("prompt", "chosen", "rejected")
            ),
            "encoding": dict(sorted(Counter(pc.list_flatten(table["notes"]).to_pylist()).items())),
            "seconds": time.perf_counter() - start,
        }

    return run.publish_once(reference_folder(run), provenance, make)


def _reference_provenance(run: Run) -> Provenance:
    inputs = {"prepare": run.path("pairs"), "student": run.path("student")}
    return run.provenance("reference", run.config.scoring, inputs)


def reference_folder(run: Run) -> Path:
    """Where the reference of this student and these pairs lies."""
    return run.path("reference", _reference_provenance(run).key[:16])

"""Stage `annotate`: ask the panel about every pair that the journal does not know the answers of.

In: `pairs/`, the teachers. Out: `journal/` (every attempt) and `annotations/` (one row a call).
Invariant: the annotations table is made from the journal alone.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from sp2dpo_ray.annotate.actor import PanelSpec
from sp2dpo_ray.annotate.journal import Journal, recorded_results
from sp2dpo_ray.annotate.pipeline import annotate as ask_panel
from sp2dpo_ray.annotate.pipeline import check_teachers
from sp2dpo_ray.annotate.table import annotations_table, completeness
from sp2dpo_ray.console import bar
from sp2dpo_ray.core.annotation import SETTLED
from sp2dpo_ray.core.artifact import publish
from sp2dpo_ray.core.files import ANNOTATIONS, EVAL, TRAIN
from sp2dpo_ray.core.pairs import PAIR_FIELDS
from sp2dpo_ray.core.prompts import load_prompts
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.teachers.base import identity


def annotate(run: Run) -> Summary:
    """Ask the panel about every pair, as far as the journal does not know the answers."""
    config = run.config
    prompts = load_prompts(config.prompts.variants, config.prompts.dir)
    identities = tuple(identity(teacher, config.decoding) for teacher in config.teachers)
    settings = {
        "teachers": [[i.name, i.provider, i.model, i.decoding] for i in identities],
        "prompts": prompts.digest,
        "evaluation": config.annotate.evaluation,
    }
    provenance = run.provenance("annotate", settings, {"prepare": run.path("pairs")})
    done = run.finished(run.path("annotations"), provenance)
    if done and SETTLED.issuperset(done.summary["outcomes"]):
        return done.summary | {
            "reused": True,
            "calls_made": 0,
            "calls_reused": done.summary["calls"],
        }

    splits = (TRAIN, EVAL) if config.annotate.evaluation else (TRAIN,)
    pairs = {name: pq.read_table(run.pairs_file(name)) for name in splits}
    everything = pa.concat_tables(
        [table.select([field.name for field in PAIR_FIELDS]) for table in pairs.values()]
    )
    journal = run.path("journal")
    spec = PanelSpec(
        config.teachers,
        config.decoding,
        prompts,
        journal,
        config.annotate.actors,
        config.annotate.max_failures,
    )
    check_teachers(spec)
    journal.mkdir(parents=True, exist_ok=True)
    Journal(journal).settled_keys()  # an altered journal is refused before anything is asked
    calls = everything.num_rows * len(identities) * len(prompts.systems)
    with bar("annotate: calls", calls) as advance:
        tally = ask_panel(
            everything, spec, pairs_per_batch=config.annotate.pairs_per_batch, progress=advance
        )
    with publish(run.path("annotations"), provenance) as draft:
        table = annotations_table(pairs, identities, prompts, recorded_results(journal))
        draft.write_table(ANNOTATIONS, table)
        draft.summary |= {"calls": calls, **completeness(table), "prompts": prompts.digest}
    return draft.summary | {
        "reused": False,
        "calls_made": tally.made,
        "calls_reused": tally.reused,
        "seconds": tally.seconds,
    }

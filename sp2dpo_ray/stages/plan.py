"""Stage `plan`: what annotation would still cost, before anything is asked.

In: `pairs/`, the journal. Out: figures by teacher; nothing is written.
"""

from __future__ import annotations

from dataclasses import asdict

import pyarrow.parquet as pq

from sp2dpo_ray.annotate.estimate import estimate_costs, total
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.core.files import TRAIN
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.mix_rounds import to_be_asked
from sp2dpo_ray.stages.panel import panel_of


def plan(run: Run) -> Summary:
    """Calls, tokens, money and hours that are missing, less what is on record."""
    panel = panel_of(run)
    run.provenance("plan", panel.settings, {"prepare": run.path("pairs")})  # the pairs are whole
    if run.config.annotate.mix is not None:
        ids = pq.read_table(run.pairs_file(TRAIN), columns=["prompt_id"])["prompt_id"].to_pylist()
        panel = panel.only(to_be_asked(run, panel, ids), ids)
    panel = panel.without_twins()
    record = read_record(Journal(panel.spec.place).new_entries())
    outlooks = estimate_costs(list(panel.files.values()), panel.spec, record)
    budget = run.config.budget.usd
    judging = {}
    if run.config.evaluate.benchmarks:  # only then are the benchmarks' packages needed
        from sp2dpo_ray.stages.judging_costs import judging_costs

        judging = judging_costs(run)
    return {
        **total(outlooks),
        "budget_usd": budget,
        "unanswered": record.unanswered,
        "judging": judging,
        "teachers": {name: asdict(outlook) for name, outlook in outlooks.items()},
    }

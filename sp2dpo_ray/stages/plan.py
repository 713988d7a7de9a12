"""Stage `plan`: what annotation would still cost, before anything is asked.

In: `pairs/`, the journal. Out: figures by teacher; nothing is written.
"""

from __future__ import annotations

from dataclasses import asdict

from sp2dpo_ray.annotate.estimate import estimate_costs, total
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.mix_rounds import panel_to_ask


def plan(run: Run) -> Summary:
    """Calls, tokens, money and hours that are missing, less what is on record."""
    run.provenance("plan", None, {"prepare": run.path("pairs")})  # the pairs are whole
    panel = panel_to_ask(run)
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

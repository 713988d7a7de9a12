"""Stage `annotate`: ask the panel about every pair that the journal does not know the answers of.

In: `pairs/`, the teachers. Out: the journal (every attempt) and `annotations/` (one row a call).
Invariant: the annotations table is made from the journal alone.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp2dpo_ray.annotate.answers import Answers
from sp2dpo_ray.annotate.batches import Order, rows_of, start_batches
from sp2dpo_ray.annotate.coordinator import start_coordinator
from sp2dpo_ray.annotate.engine import start_engine
from sp2dpo_ray.annotate.journal import Journal
from sp2dpo_ray.annotate.limiter import limiter_of
from sp2dpo_ray.annotate.metrics import expect
from sp2dpo_ray.annotate.pipeline import annotate as ask_panel
from sp2dpo_ray.annotate.preflight import NoRoom, preflight
from sp2dpo_ray.annotate.record import read_record
from sp2dpo_ray.annotate.table import Predict, pair_chunks, write_annotations
from sp2dpo_ray.annotate.tally import Progress, Tally
from sp2dpo_ray.console import bars, say
from sp2dpo_ray.core.annotation import SETTLED, Outcome
from sp2dpo_ray.core.artifact import Draft, Provenance
from sp2dpo_ray.core.files import ANNOTATIONS, TRAIN
from sp2dpo_ray.distill.predictions import SERVED_BY_PREDICTOR, UNFAMILIAR_NOTE
from sp2dpo_ray.distill.record import check_predictors
from sp2dpo_ray.errors import DataError, Stopped, TeacherStopped
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages import missing
from sp2dpo_ray.stages.panel import PanelWork, journal_held, panel_of
from sp2dpo_ray.teachers.catalogue import settings_of

FINAL = SETTLED | {Outcome.SKIPPED, Outcome.PREDICTED}


def annotate(run: Run) -> Summary:
    """Ask the panel about every pair, as far as the journal does not know the answers."""
    panel = panel_of(run)
    mix = run.config.annotate.mix
    settings = panel.settings
    for line in check_predictors(run.config):
        say(line)
    if mix is not None:
        settings |= {
            "mix": mix.model_dump(mode="json"),
            "distill": run.config.distill.of_predictor,
        }
    provenance = run.provenance("annotate", settings, {"prepare": run.path("pairs")})
    done = run.finished(run.path("annotations"), provenance)
    if done and FINAL.issuperset(done.summary["outcomes"]):
        return done.summary | {
            "reused": True,
            "calls_made": 0,
            "calls_reused": done.summary["calls"],
            "cost_usd": 0.0,
        }
    with nullcontext() if run.offline else journal_held(panel.spec.place):
        return _annotated(run, panel, provenance)


def _annotated(run: Run, panel: PanelWork, provenance: Provenance) -> Summary:
    tally, predict = Tally(), None
    if run.config.annotate.mix is None:
        _ask(run, panel, tally)
    else:
        panel, predict = _mixed(run, panel, tally)
    answers = Answers(Journal(panel.spec.place).new_entries())
    try:
        with run.publish(run.path("annotations"), provenance) as draft:
            whole = write_annotations(
                draft.path / ANNOTATIONS, panel.files, panel.expected, answers, predict
            )
            if run.offline and (gaps := set(whole.outcomes) - FINAL):
                raise DataError(_not_on_record(whole.outcomes, gaps))
            draft.summary |= _summary(panel, whole)
            _tell_unfamiliar(draft)
    finally:
        answers.close()
    return draft.summary | _figures(tally)


def _mixed(run: Run, panel: PanelWork, tally: Tally) -> tuple[PanelWork, Predict]:
    try:
        from sp2dpo_ray.stages.mix import mixed  # only then is its library needed
    except ModuleNotFoundError as error:
        raise missing(error, "annotate.mix", "distill") from error

    def ask(part: PanelWork) -> None:
        now = Tally()
        _ask(run, part, now)
        tally.go_on_with(now)

    shared = mixed(run, panel, ask)
    return shared.panel, shared.predict


def _ask(run: Run, panel: PanelWork, tally: Tally) -> None:
    """Ask the panel's calls that are not on record, and count them into `tally`."""
    # an altered journal is refused here, before anything is asked
    journal = Journal(panel.spec.place)
    record = read_record(journal.new_entries(), with_gaps=panel.spec.early_stop is not None)
    if run.offline:
        return
    config, start = run.config, time.perf_counter()
    if journal.torn:
        say(f"annotate: the last line of {journal.torn:,} journal files is torn and left out")
    if record.unanswered:
        say(
            f"annotate: {record.unanswered:,} attempts of earlier commands were cut off; "
            "they may have been paid and are asked again"
        )
    patience_s = config.decoding.timeout_s + 60
    coordinator = start_coordinator(panel.spec.place, config.budget.usd, record.usd, patience_s)
    # they live as long as the process that made them, so it must be this one, not an actor
    limiters = [limiter_of(teacher) for teacher in config.teachers]
    economy = panel.spec.early_stop is not None
    files = list(panel.files.values())
    first = next(pair_chunks(panel.files[TRAIN]), [])

    def catch_up() -> None:
        since = read_record(journal.new_entries(), with_gaps=economy)
        for name, spent in since.spent.items():
            tally.usd[name] = tally.usd.get(name, 0.0) + spent.usd
        record.add(since)

    def orders_of(panel: PanelWork) -> list[Order]:
        return [Order(spec, files, record, config.annotate.poll_s) for spec in panel.batch]

    collected: list[str] = []
    try:
        replies = preflight(panel.spec, first, record, coordinator)
    except NoRoom:
        # an open job counts at its worst: its end gives most of that back
        names = [spec.teachers[0].name for spec in panel.batch]
        collected = [name for name in names if record.jobs_of(name)]
        if not collected:
            raise
        holders, panel = panel.split_off(collected)
        say(f"annotate: the open batch jobs of {collected} hold the budget and are waited for")
        with bars("annotate", dict.fromkeys(collected, holders.calls_each)) as advance:
            orders = orders_of(holders.without_twins())
            _take([start_batches(order, coordinator) for order in orders], tally, advance)
        tally.usd.clear()  # the journal tells it
        catch_up()
        replies = preflight(panel.spec, first, record, coordinator)
    for name, reply in replies.items():
        if reply.outcome in SETTLED:
            tally.made[name] += 1
            tally.reused[name] -= 1  # the pipeline will find it on record
            tally.outcomes[name] = Counter({reply.outcome: 1})
    catch_up()
    panel = panel.without_twins()
    totals = {teacher.name: panel.calls_each for teacher in config.teachers}
    streams = [start_batches(order, coordinator) for order in orders_of(panel)]
    expect(totals)
    with bars("annotate", totals) as advance:
        for name in collected:
            advance(name, tally.made[name] + tally.reused[name], tally.note(name))
        twin_calls = len(panel.spec.twins - panel.left_out) * len(panel.spec.prompts.systems)
        for name in totals if twin_calls else ():
            tally.reused[name] += twin_calls
            advance(name, twin_calls, tally.note(name))
        if panel.interactive.teachers:
            ask_panel(
                files, panel.interactive, record, coordinator, journal,
                rounds=config.annotate.rounds,
                pairs_per_batch=config.annotate.pairs_per_batch,
                progress=advance, tally=tally,
            )  # fmt: skip
        for engine in panel.engines:  # one after the other: each may take every GPU
            for rows in rows_of(start_engine(Order(engine, files, record, config.annotate.poll_s))):
                tally.take(rows, advance)
        _take(streams, tally, advance)
    del limiters
    tally.seconds = time.perf_counter() - start


def _take(streams: list[Any], tally: Tally, progress: Progress) -> None:
    """Count what the batch teachers bring. One without room ends the stage after the others have
    ended: their jobs must not be left behind for the money that they hold."""
    no_room = None
    for stream in streams:
        try:
            for rows in rows_of(stream):
                tally.take(rows, progress)
        except TeacherStopped:
            raise
        except Stopped as stopped:
            no_room = no_room or stopped
    if no_room is not None:
        raise no_room


def _not_on_record(outcomes: Counter[str], gaps: set[str]) -> str:
    calls = sum(outcomes[name] for name in gaps)
    return (
        f"--offline: {calls:,} of {sum(outcomes.values()):,} calls are not on record as answered "
        f"({', '.join(f'{outcomes[name]:,} {name}' for name in sorted(gaps))}). Run annotate "
        "without --offline to ask them"
    )


def _summary(panel: PanelWork, whole: Any) -> Summary:
    dropped = {
        teacher.name: settings_of(teacher, panel.spec.decoding).dropped
        for teacher in panel.spec.teachers
    }
    summary = {
        "calls": whole.outcomes.total(),
        **whole.summary,
        "prompts": panel.spec.prompts.digest,
        "settings_dropped": {name: value for name, value in dropped.items() if value},
    }
    if panel.spec.redact:
        summary["redacted"] = dict(sorted(whole.redacted.items()))
    return summary


def _tell_unfamiliar(draft: Draft) -> None:
    """Count the pairs that a predictor knows next to nothing of."""
    columns = ["prompt_id", "served_model", "detail"]
    table = pq.read_table(draft.path / ANNOTATIONS, columns=columns)
    told = table.filter(pc.starts_with(table["served_model"], SERVED_BY_PREDICTOR))
    odd = told.filter(pc.match_substring(told["detail"], UNFAMILIAR_NOTE))
    count = pc.count_distinct(odd["prompt_id"]).as_py()
    if count:
        draft.summary["unfamiliar"] = count
        say(
            f"annotate: {count:,} pairs are unlike all that the predictor learned from (most of "
            "their words are new to it): its answers are guesses there"
        )


def _figures(tally: Tally) -> Summary:
    """What this command did, beside what the artifact holds."""
    return {
        "reused": False,
        "calls_made": tally.made.total(),
        "calls_reused": tally.reused.total(),
        "cost_usd": round(tally.total_usd, 6),
        "seconds": tally.seconds,
    }

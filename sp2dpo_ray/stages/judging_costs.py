"""What judges will cost at most (Eq. 60 with a judge in the annotators' place), before any answer.

In: the benchmarks' questions, the students that are to be compared. Out: calls and USD by
benchmark. Invariant: an upper bound: every answer is taken to be as long as it may be, and every
token to be one byte.
"""

from __future__ import annotations

from sp2dpo_ray.evaluate.judging import worst_of
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.benchmarks import BENCHMARKS
from sp2dpo_ray.stages.evaluate import judge_of


def judging_costs(run: Run) -> dict[str, Summary]:
    """students, calls, and cost_usd: at most, None without a price; each of all students."""
    config = run.config
    section = config.evaluate
    wanted = section.arms if section.arms is not None else config.sweep.names
    own = section.base + len(wanted)
    found: dict[str, Summary] = {}
    for name in section.benchmarks:
        benchmark = BENCHMARKS[name]
        items = benchmark.items(section)
        longest = "x" * config.generate.max_new_tokens
        answers = {item.id: tuple(longest for _ in item.turns) for item in items}
        questions = benchmark.questions(section, items, answers)
        if not questions:
            continue
        students = own + sum(name in paths for paths in section.outputs.values())
        each = worst_of(judge_of(run, name), questions)
        found[name] = {
            "students": students,
            "calls": students * len(questions),
            "cost_usd": None if each is None else students * each,
        }
    return found

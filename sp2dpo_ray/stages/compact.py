"""Stage `compact`: the journal's many files become one a teacher.

In and out: the journal; answers, attempts and money stay what they were. Nothing may be writing to
the journal meanwhile: a folder is held, an object store is not.
"""

from __future__ import annotations

from sp2dpo_ray.annotate.merge import merge_segments
from sp2dpo_ray.run import Run, Summary
from sp2dpo_ray.stages.panel import journal_held, panel_of


def compact(run: Run) -> Summary:
    """Merge the journal's segments."""
    place = panel_of(run).spec.place
    with journal_held(place):
        return dict(merge_segments(place))

"""The picture of the package: which part stands on which.

In: `FLOORS`, from the top down; a part imports from floors below it alone. Out: an SVG. Invariant:
a test holds the floors against the imports that the code really has, and the picture against this.
Run as: python docs/hooks/house.py > docs/architecture.svg
"""

from __future__ import annotations

from html import escape

FLOORS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("cli", "commands, help, what a person sees"),),
    (("stages", "one file a stage; they meet only in the run folder"),),
    (("run", "a run folder: keys, provenance, what is done already"),),
    (("report", "page, tables"), ("cluster", "jobs, sizes, spot notices, tokens")),
    (("tune", "many arms, searches"), ("lab", "worlds of known truth")),
    (("evaluate", "benchmarks, judges, honest comparison"),),
    (
        ("annotate", "paid calls, journal"),
        ("reference", "frozen log-probs"),
        ("train", "one arm"),
        ("distill", "predictor"),
        ("hosted", "models in process"),
    ),
    (
        ("objectives", "losses on log-probs"),
        ("teachers", "a file a provider"),
        ("modeling", "students: tokens, forward, LoRA"),
        ("room", "what the cluster holds"),
    ),
    (("config", "one YAML file, checked"), ("console", "progress, messages")),
    (("core", "the method as pure functions: schedule, arms, artifacts, pairs"),),
    (("errors", "what can go wrong, and its exit code"),),
)
WIDTH, HEIGHT, GAP, EDGE = 960, 52, 8, 12
INK, SOFT, FILL, LINE = "#4c78a8", "#8a8f98", "rgba(76,120,168,.12)", "rgba(76,120,168,.55)"


def picture() -> str:
    """The floors as boxes, in colours that a light and a dark page can show."""
    full = 2 * EDGE + len(FLOORS) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {full}" role="img" '
        'font-family="system-ui, sans-serif">',
        "<title>The parts of sp2dpo_ray: each imports from floors below it alone</title>",
    ]
    for floor, rooms in enumerate(FLOORS):
        top = EDGE + floor * (HEIGHT + GAP)
        room = (WIDTH - 2 * EDGE - (len(rooms) - 1) * GAP) / len(rooms)
        for place, (name, what) in enumerate(rooms):
            left = EDGE + place * (room + GAP)
            middle = left + room / 2
            parts += [
                f'<rect x="{left:.1f}" y="{top}" width="{room:.1f}" height="{HEIGHT}" rx="6" '
                f'fill="{FILL}" stroke="{LINE}"/>',
                f'<text x="{middle:.1f}" y="{top + 22}" text-anchor="middle" font-size="16" '
                f'font-weight="600" fill="{INK}">{escape(name)}</text>',
                f'<text x="{middle:.1f}" y="{top + 41}" text-anchor="middle" font-size="12" '
                f'fill="{SOFT}">{escape(what)}</text>',
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    print(picture(), end="")

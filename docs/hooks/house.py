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
# of a box, its edge, the name in it and what it does: on a light page, and on a dark one
LIGHT = ("#e9eff5", "#9db5d0", "#2f5d8f", "#4e5561")
DARK = ("#1f2a38", "#4c6a8e", "#9cc3ee", "#b3b9c4")


def picture() -> str:
    """The floors as boxes. Each has its own ground, so that it can be read on whatever page."""
    full = 2 * EDGE + len(FLOORS) * (HEIGHT + GAP) - GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {full}" role="img" '
        'font-family="system-ui, sans-serif">',
        "<title>The parts of sp2dpo_ray: each imports from floors below it alone</title>",
        f"<style>{_style(LIGHT)} @media (prefers-color-scheme: dark) {{ {_style(DARK)} }}</style>",
    ]
    for floor, rooms in enumerate(FLOORS):
        top = EDGE + floor * (HEIGHT + GAP)
        room = (WIDTH - 2 * EDGE - (len(rooms) - 1) * GAP) / len(rooms)
        for place, (name, what) in enumerate(rooms):
            left = EDGE + place * (room + GAP)
            middle = left + room / 2
            parts += [
                f'<rect x="{left:.1f}" y="{top}" width="{room:.1f}" height="{HEIGHT}" rx="6"/>',
                f'<text class="name" x="{middle:.1f}" y="{top + 22}" text-anchor="middle" '
                f'font-size="16" font-weight="600">{escape(name)}</text>',
                f'<text class="what" x="{middle:.1f}" y="{top + 41}" text-anchor="middle" '
                f'font-size="12">{escape(what)}</text>',
            ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style(colours: tuple[str, ...]) -> str:
    box, edge, name, what = colours
    return (
        f"rect {{ fill: {box}; stroke: {edge} }} .name {{ fill: {name} }} .what {{ fill: {what} }}"
    )


if __name__ == "__main__":
    print(picture(), end="")

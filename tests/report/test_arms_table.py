"""The arms in the paper's form: its lines, its order, dashes, and which numbers are marked."""

from __future__ import annotations

from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.report.arms_table import Line, lines_of, markdown

PANEL = Panel(("qwen", "openai", "gemini"), ("v1", "v2", "v3"))
PAPER = [
    "random", "dpo:0.5", "dpo:0.1", "dpo:0.3",
    *(f"sa-{t}-{v}" for t in PANEL.teachers for v in PANEL.variants),
    *(f"se-{t}" for t in PANEL.teachers), *(f"ma-{v}" for v in PANEL.variants), "jmamp",
]  # fmt: skip


def test_the_lines_are_those_of_table_16_whatever_order_they_were_trained_in() -> None:
    lines = lines_of([f"{name}@{seed}" for seed in (1, 2) for name in PAPER[::-1]], PANEL)
    assert [line.label for line in lines] == [
        "uniform in the envelope", "β=0.1", "β=0.3", "β=0.5",
        *(f"SA-{t}-{v}" for t in PANEL.teachers for v in PANEL.variants),
        *(f"SE-{t}" for t in PANEL.teachers), *(f"MA-{v}" for v in PANEL.variants), "JMAMP",
    ]  # fmt: skip
    assert [line.group for line in lines] == ["Rand", *["DPO"] * 3, *["SP2DPO"] * 16]
    assert lines_of(["jmamp"], PANEL, base=True)[0] == Line("Base", "\u2013", "base")
    other = lines_of(["jmamp", "simpo", "dpo:0.1/random"], PANEL)
    assert [(line.group, line.label) for line in other] == [
        ("SP2DPO", "JMAMP"), ("others", "simpo"), ("others", "dpo:0.1/random")
    ]  # fmt: skip


def test_groups_are_named_once_and_the_best_printed_number_is_marked() -> None:
    lines = lines_of(["dpo:0.1", "dpo:0.3", "jmamp"], PANEL)
    cells = {"dpo:0.1": {"LC": 7.504, "WR": 20.0}, "dpo:0.3": {"LC": 7.5}, "jmamp": {"WR": 16.5}}
    assert markdown(lines, ("LC", "WR"), cells).splitlines() == [
        "| Meth. | Cfg | LC | WR |",
        "|---|---|---|---|",
        "| DPO | β=0.1 | **7.50** | **20.00** |",
        "|  | β=0.3 | **7.50** | \u2013 |",  # equal as printed
        "| SP2DPO | JMAMP | \u2013 | 16.50 |",
    ]

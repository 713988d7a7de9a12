"""Students side by side: the paper's Table 16 gives its Tables 2 and 3 and the gains it names."""

from __future__ import annotations

from sp2dpo_ray.core.schedule.grid import Panel
from sp2dpo_ray.report.arms_table import BASE
from sp2dpo_ray.report.paper_tables import Student, gains, methods, table_2, table_3, table_16

PANEL = Panel(("qwen", "openai", "gemini"), ("v1", "v2", "v3"))
ARMS = (
    BASE, "random", "dpo:0.1", "dpo:0.3", "dpo:0.5",
    *(f"sa-{t}-{v}" for t in PANEL.teachers for v in PANEL.variants),
    *(f"se-{t}" for t in PANEL.teachers), *(f"ma-{v}" for v in PANEL.variants), "jmamp",
)  # fmt: skip
DASH = None
# SP2DPO (2026), Table 16: LC and WR by student, rows in the order of ARMS
TABLE_16 = {
    "qwen3": (
        (4.81, 16.65), (6.02, 19.25), (7.45, 18.89), (5.14, 16.15), (5.43, 16.27), (6.50, 17.64),
        (6.36, 17.76), (5.25, 17.52), (7.39, 18.63), (7.55, 18.01), (7.19, 17.88), (5.63, 17.14),
        (6.02, 17.76), (6.81, 19.25), (6.95, 17.89), DASH, DASH, DASH, (6.70, 18.51),
        (6.57, 17.87), (6.82, 19.38),
    ),
    "gemma": (
        (38.96, 54.97), (39.35, 54.10), (40.59, 55.84), (41.08, 54.22), (40.58, 53.85),
        (41.57, 54.72), (40.85, 54.47), (42.15, 55.59), (39.20, 56.09), (41.06, 55.96),
        (40.95, 55.34), (41.16, 56.09), (41.47, 55.09), (40.81, 54.35), (41.09, 55.09),
        (41.57, 55.84), (40.87, 55.34), (41.59, 55.34), (41.41, 55.47), (40.52, 54.97),
        (41.02, 54.97),
    ),
    "mistral": (
        (13.68, 13.04), DASH, (31.26, 27.64), (32.57, 26.77), (31.11, 26.34), (28.47, 24.78),
        (30.14, 26.40), (29.46, 26.27), (28.49, 25.65), (29.94, 26.77), (28.57, 25.40),
        (20.98, 19.32), (30.46, 27.27), (31.23, 27.76), *[DASH] * 7,
    ),
    "llama": (
        (30.65, 32.24), (32.02, 31.86), (34.80, 33.66), (34.46, 33.98), (33.55, 33.35),
        (31.75, 31.49), (32.67, 32.24), (33.13, 32.73), (33.11, 32.61), (32.06, 31.24),
        (32.22, 31.86), (33.04, 32.73), (32.41, 32.11), (33.03, 32.48), (32.35, 31.86),
        (33.57, 32.98), (33.21, 32.61), (33.04, 32.73), (32.36, 32.11), (30.82, 30.62),
        (34.19, 33.73),
    ),
}  # fmt: skip
STUDENTS = [
    Student(name, PANEL, {arm: dict(zip(("LC", "WR"), row, strict=True))
                          for arm, row in zip(ARMS, rows, strict=True) if row})
    for name, rows in TABLE_16.items()
]  # fmt: skip
QWEN3, GEMMA, MISTRAL, LLAMA = STUDENTS


def test_table_2_names_the_best_arms_of_the_paper() -> None:
    best = [methods(student, "LC")["SP2DPO, best"] for student in STUDENTS]
    assert best == ["sa-openai-v2", "sa-qwen-v3", "sa-gemini-v3", "jmamp"]
    tuned = [methods(student, "LC")["DPO, best beta"] for student in STUDENTS]
    assert tuned == ["dpo:0.1", "dpo:0.3", "dpo:0.3", "dpo:0.1"]
    cells = [
        [cell.strip().strip("*") for cell in line.split("|")[3:-1]]
        for line in table_2(STUDENTS, ("LC", "WR")).splitlines()[2:]
    ]
    assert cells == [
        ["4.81", "16.65", "38.96", "54.97", "13.68", "13.04", "30.65", "32.24"],
        ["6.02", "19.25", "39.35", "54.10", "\u2013", "\u2013", "32.02", "31.86"],
        ["7.45", "18.89", "41.08", "54.22", "32.57", "26.77", "34.80", "33.66"],
        ["6.82", "19.38", "41.02", "54.97", "\u2013", "\u2013", "34.19", "33.73"],
        ["7.55", "18.01", "42.15", "55.59", "31.23", "27.76", "34.19", "33.73"],
    ]


def test_gains_are_those_that_the_papers_section_5_names() -> None:
    shown = [{k: round(v, 2) for k, v in gains(student, "LC").items()} for student in STUDENTS]
    assert [row["SP2DPO, best"] for row in shown] == [0.10, 1.07, -1.34, -0.61]
    assert [row.get("SP2DPO, JMAMP") for row in shown] == [-0.63, -0.06, None, -0.61]
    assert "Base" not in shown[0]
    assert gains(Student("x", PANEL, {"jmamp": {"LC": 1.0}}), "LC") == {}


def test_table_3_is_the_papers() -> None:
    lines = table_3(STUDENTS, "LC").splitlines()
    assert lines[0] == "| Student | qwen | openai | gemini |"
    assert lines[2:4] == [
        "| qwen3 | 6.50 (v1) | **7.55** (v2) | 6.81 (v3) |",
        "| gemma | **42.15** (v3) | 41.06 (v2) | 41.47 (v2) |",
    ]
    assert lines[4] == "| mistral | 30.14 (v2) | 29.94 (v2) | **31.23** (v3) |"
    assert lines[5] == "| llama | **33.13** (v3) | 33.11 (v1) | 33.04 (v1) |"


def test_table_16_has_a_dash_for_what_was_not_run() -> None:
    lines = table_16(STUDENTS, ("LC", "WR")).splitlines()
    assert len(lines) == 2 + len(ARMS)
    assert lines[-1].count("\u2013") == 2
    assert "**19.38**" in lines[-1]
    assert "**34.80**" in lines[4]

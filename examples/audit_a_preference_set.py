"""Audit a preference set: which labels should a person look at, and how far is the panel right?

You learn: the stages that need no training (prepare, annotate, schedule, audit), how a sheet comes
back as agreement, and how to read it. Run as: python examples/audit_a_preference_set.py [FOLDER]
In: the bundled pairs, whose truth is known (24 of 264 labels are turned round); the panel is three
sets of fixed rules on the text, so no key and no network is needed, and its figures say nothing of
language models. Out: FOLDER/runs/audit, and the agreement on stdout. Needs: sp2dpo-ray[annotate].

With pairs of your own and real teachers everything stays the same but for two things: CONFIG names
them, and the verdicts are a person's, who fills in the sheet in a spreadsheet.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PAIRS = Path(__file__).parents[1] / "configs" / "demo" / "pairs.jsonl"
CONFIG = """
run: {{name: audit, storage: {folder}/runs}}
data: {{source: {folder}/pairs.jsonl, eval_fraction: 0}}  # nothing is trained: audit every pair
teachers:
  - {{name: alba, provider: offline, model: rules, options: {{persona: balanced}}}}
  - {{name: bruno, provider: offline, model: rules, options: {{persona: strict}}}}
  - {{name: carla, provider: offline, model: rules, options: {{persona: generous}}}}
audit: {{each: 15, sample: 60}}  # 15 pairs for each suspicion, and a fair sample of 60
"""


def sp2dpo(*arguments: str) -> dict[str, Any]:
    """One stage; its summary is the last line of stdout, its progress goes to stderr."""
    command = [sys.executable, "-m", "sp2dpo_ray", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def own_pairs(path: Path) -> dict[str, dict[str, Any]]:
    """Write the pairs in the plainest form that `prepare` reads; returns what is known of them."""
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            kept = {name: row[name] for name in ("prompt_id", "prompt", "chosen", "rejected")}
            file.write(json.dumps(kept) + "\n")
    return {row["prompt_id"]: row for row in rows}


def fill_in(sheet: Path, known: dict[str, dict[str, Any]], filled: Path) -> None:
    """The person's part: which response is better, and the true category.

    The columns behind `note` are what the panel said. A person hides them, so as not to be swayed.
    """
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        truth = known[row["prompt_id"]]
        row["verdict"] = "rejected" if truth["label_flipped"] else "chosen"  # or "tie"
        row["true_category"] = truth["known_category"]
    with filled.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def told(part: dict[str, Any]) -> str:
    """A share with its 95 % interval."""
    return f"{part['share']:.2f} ({part['low']:.2f} to {part['high']:.2f}, {part['pairs']} pairs)"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    known = own_pairs(folder / "pairs.jsonl")
    config = folder / "audit.yaml"
    config.write_text(CONFIG.format(folder=folder.resolve()), encoding="utf-8")

    prepared = sp2dpo("prepare", str(config))
    annotated = sp2dpo("annotate", str(config))  # again after an interruption: does what is missing
    scheduled = sp2dpo("schedule", str(config))
    print(f"{prepared['pairs']} pairs, {annotated['calls_made']} calls made now")
    print("beta: {min:.3f} to {max:.3f}, mean {mean:.3f}".format(**scheduled["beta"]))

    listed = sp2dpo("audit", str(config))
    print(f"{listed['pairs']} pairs on the sheet, by reason: {listed['reasons']}")
    fill_in(Path(listed["sheet"]), known, folder / "filled.csv")
    found = sp2dpo("audit", str(config), "--import", str(folder / "filled.csv"))

    # `sample` estimates the whole set; the other reasons are suspects, and should fare worse
    print(f"labels that are right: {told(found['labels_right'])}, from: {found['basis']}")
    for reason, part in found["labels_right_by_reason"].items():
        print(f"  listed as {reason}: {told(part)}")
    for teacher, part in found["teachers"].items():
        print(f"{teacher}: the person's order {told(part['order'])}, Brier {part['brier']:.3f}")
    print(f"for ensemble.teacher_weights: {json.dumps(found['teacher_weights'])}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="sp2dpo-audit-")))

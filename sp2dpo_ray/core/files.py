"""Names of what lies in a run folder, for the stages that write it and those that read it."""

from __future__ import annotations

TRAIN, EVAL = "train", "eval"  # the two sides of the split
PAIRS = "pairs"  # the folder of them
PAIRS_TABLE = "{split}.parquet"
EXCLUDED = "excluded.parquet"

ANNOTATIONS = "annotations.parquet"

SCHEDULE = "schedule.parquet"
SCHEDULE_CSV = "schedule.csv"
DIAGNOSTICS = "diagnostics.parquet"
QUALITY = "diagnostics.json"  # the same in figures
CARD = "card.md"

AUDIT_SHEET = "audit.csv"
AUDIT_LIST = "audit.parquet"  # the same without texts
VERDICTS = "verdicts.parquet"
AGREEMENT = "agreement.json"
EVAL_SCHEDULE = "eval_schedule.parquet"
EVAL_DIAGNOSTICS = "eval_diagnostics.parquet"

REFERENCE = "reference.parquet"

BETAS = "betas.parquet"  # the arm's beta of each training pair
CHECKPOINTS = "checkpoints"  # of a training on its way, below a part of its key
METRICS_LINES = "metrics.jsonl"  # one line a logged step
TRAJECTORY = "trajectory.parquet"  # betas that moved: step by step what each pair was given
TRAINING = "training.json"  # what the training was made with
HELD_OUT = "held_out.parquet"  # what the workers leave; becomes the next
EVAL_PAIRS = "eval_pairs.parquet"  # margin and category of each held-out pair
OUTPUTS = "outputs.json"  # answers of a student, in alpaca-eval's format
RESULT, ITEMS = "result.json", "items.json"  # figures of a benchmark, and what each item got
FRONTIER, FRONTIER_TEXT = "frontier.json", "frontier.md"  # error of beta against calls and money
PREDICTOR_FIGURES = "figures.json"  # of a predictor on the pairs that tested it
ARMS = "arms.json"  # the figures of every arm, for tables over several runs
COMPARISON, COMPARISON_TEXT = "comparison.json", "comparison.md"
SWEEP_TABLE = "table.json"
SWEEP_TEXT = "table.md"
SWEEP_TRIALS = "trials.json"  # what became of each arm
ADAPTER, MERGED = "adapter", "merged"  # folders: what was trained by itself, and in the student

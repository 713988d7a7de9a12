"""Blocks through actors: on GPUs too, each whole and by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sp2dpo_ray.reference.parts import Parts


@pytest.mark.ray
@pytest.mark.slow
def test_blocks_stay_whole_where_ray_believes_in_a_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.modeling.pretended_gpu", str(tmp_path)],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["size"] == [size for size in (1, 5, 2, 3) for _ in range(size)]
    assert found["number"] == [2 * (10 * i + j) for i, n in enumerate((1, 5, 2, 3))
                               for j in range(n)]  # fmt: skip
    assert sorted(table.num_rows for table in Parts(tmp_path).read()) == [1, 2, 3, 5]

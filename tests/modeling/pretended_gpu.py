"""The reference pass on a Ray that believes in a GPU: run as a script, prints what came out.

Ray only counts GPUs; the actor finds none and computes on the CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pyarrow as pa
import ray

from sp2dpo_ray.reference.parts import Parts, through_actors


class Doubles:
    """Doubles every number, and tells in how large a block it came."""

    def __init__(self, spec: int) -> None:
        self._factor = spec

    def __call__(self, block: pa.Table) -> pa.Table:
        # Ray shows an actor under the name of its class
        assert "Doubles" in " ".join(psutil.Process().cmdline())
        (gpu,) = ray.get_gpu_ids()
        assert gpu in (0, "0")
        numbers = [self._factor * number for number in block["number"].to_pylist()]
        return pa.table(
            {
                "prompt_id": block["prompt_id"],
                "number": numbers,
                "size": [block.num_rows] * block.num_rows,
            }
        )


def main() -> None:
    sizes = (1, 5, 2, 3)
    blocks = [
        pa.table(
            {
                "prompt_id": [f"{i}-{j}" for j in range(size)],
                "number": [10 * i + j for j in range(size)],
            }
        )
        for i, size in enumerate(sizes)
    ]
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False)
    done = through_actors(
        blocks, Doubles, 2, Parts(Path(sys.argv[1])), actors=1, gpus_per_actor=1,
        progress=lambda rows, note: None,
    )  # fmt: skip
    print(json.dumps(pa.concat_tables(done).sort_by("prompt_id").to_pydict()))


if __name__ == "__main__":
    main()

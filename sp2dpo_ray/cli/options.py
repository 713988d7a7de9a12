"""Options that several commands take, said once.

In: nothing. Out: annotated types for typer. Invariant: an option means the same wherever it stands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MAY_ASK = ("annotate", "evaluate", "run")  # commands that take --offline

ConfigFile = Annotated[str, typer.Argument(help="YAML file with the whole configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON line.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress: the summary and errors alone.")
]
Debug = Annotated[bool, typer.Option(help="Show tracebacks.")]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline", "--replay", help="Ask no teacher and no judge: what is on record must do."
    ),
]
Folder = Annotated[Path, typer.Argument(help="A published artifact, or a run folder.")]
RunFolder = Annotated[Path, typer.Argument(help="A run folder.")]
Address = Annotated[
    str | None,
    typer.Option(help="Ray dashboard; else RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."),
]
AllowOpen = Annotated[
    bool, typer.Option("--allow-open", help="Take a cluster that lets anybody run code.")
]

"""A program on the command line: messages to people, exit codes to shells. Knows no program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from jaxflow.types import UserError


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Run a program's `main` on the arguments given and end the process: 2 where they are refused."""
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)

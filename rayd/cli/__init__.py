"""Command line: a thin layer in which every command calls the package.

Each module holds the commands of one subject; `program` combines and runs them.

Exit codes: 0 success, 1 a run that failed, 2 a usage or configuration error, 130 interrupted. A
user error is one sentence on standard error; `--debug` adds the traceback. With `--json`, standard
output is one JSON document and nothing else.
"""

from rayd.cli.program import app, main

__all__ = ["app", "main"]

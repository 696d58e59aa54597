"""`python -m pixelbert` and the `pixelbert` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; returns the exit code. A core package that is missing is one sentence, too."""
    try:
        from pixelbert.cli import main as run
    except ModuleNotFoundError as error:  # typer, rich: without them not even `doctor` can speak
        print(f"pixelbert: the package '{error.name}' is missing: run pip install pixelbert again", file=sys.stderr)
        return 6
    return run()


if __name__ == "__main__":
    sys.exit(main())

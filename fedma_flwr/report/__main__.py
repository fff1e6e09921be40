"""``python -m fedma_flwr.report FOLDER... [--output FILE]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedma_flwr.report.file_names import REPORT
from fedma_flwr.report.records import ReportError
from fedma_flwr.report.write import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fedma_flwr.report",
        description="Make one HTML file from the records of one or several runs.",
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="output folder of a run, or a folder of such folders",
    )
    parser.add_argument(
        "--output", type=Path, help=f"the file (default: {REPORT} in the first folder)"
    )
    arguments = parser.parse_args(argv)
    try:
        path = write_report(arguments.folders, arguments.output)
    except (ReportError, ImportError) as error:
        print(f"no report: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

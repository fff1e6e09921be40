"""What the commands of the two demos have in common: `--set`, and how they end."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable
from typing import Any

from simulations.commands import RunFailedError


def add_set_option(parser: argparse.ArgumentParser, of: str) -> None:
    """Add `--set KEY=VALUE`, which overrides a config key `of` what the help names."""
    parser.add_argument(
        "--set",
        action="append",
        type=parse_setting,
        default=[],
        metavar="KEY=VALUE",
        help=f"override a config key {of}; may be repeated",
    )


def parse_setting(setting: str) -> tuple[str, Any]:
    """Return the key and the value of "key=value"; the value is TOML's, or else a string."""
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise argparse.ArgumentTypeError(f"expected key=value, not {setting!r}")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value


def exit_status(run: Callable[[], None]) -> int:
    """Run a demo to its end, or say why it has none; return the command's exit status."""
    try:
        run()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (RunFailedError, ValueError) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return 1
    return 0

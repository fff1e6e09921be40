"""A round of a large cohort: the server's CPU and memory, with replies that wait on disk.

``python -m benchmarks.large_cohorts [--case VGG-9] [--clients 1000] [--folder F] [--json FILE]``

Clients answer when they are asked for it, one after the other, as in a deployment; what they take
is not counted. Memory is what the process holds beside files that are mapped into it: those pages
are the system's, which drops them when it needs the room. The folder needs as much room as all
replies of a stage together.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message

from benchmarks.measure import clock, machine
from benchmarks.scale import CASES, AnsweringGrid, TimedMatcher
from fedma_flwr import FedMA
from fedma_flwr.strategy import DEFAULT_MATCHER
from fedma_flwr.structure import derive_spec

_SECONDS = 0.02  # between two looks at the memory


class LateGrid(AnsweringGrid):
    """A grid whose clients answer when their reply is pulled: no two replies wait in it."""

    def __init__(self, clients: int) -> None:
        super().__init__(clients)
        self._asked: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep the messages."""
        ids = []
        for message in messages:
            self._sent += 1
            key = f"message-{self._sent}"
            message.metadata.__dict__["_message_id"] = key
            self._asked[key] = message
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the clients answer."""
        start = clock()
        asked = [self._asked.pop(key) for key in list(message_ids) if key in self._asked]
        replies = [reply for reply in map(self._answer, asked) if reply is not None]
        self.seconds += clock() - start
        return replies


class AnchoredMatcher(TimedMatcher):
    """The default matcher beside a clock; it says that it need not see all clients at once."""

    anchors = DEFAULT_MATCHER.anchors


@contextmanager
def peak_of_own_memory() -> Iterator[dict[str, float]]:
    """Note by how many bytes the process' own memory grew at most, mapped files left out."""
    before, done, result = _own_memory(), threading.Event(), {"bytes": 0.0}

    def watch() -> None:
        while not done.wait(_SECONDS):
            result["bytes"] = max(result["bytes"], _own_memory() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        done.set()
        thread.join()


def _own_memory() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("RssAnon"))


def one_round(name: str, clients: int, folder: Path) -> dict[str, Any]:
    """CPU seconds of the server, of matching and of the clients, and the peak of memory."""
    case = CASES[name]
    model = case.make()
    spec = derive_spec(model, (case.input,))
    torch.manual_seed(0)
    grid, matcher, initial = LateGrid(clients), AnchoredMatcher(), model.state_dict()
    options = {"min_available_nodes": clients, "fraction_evaluate": 0.0, "spill_dir": folder}
    strategy = FedMA(spec=spec, matcher=matcher, **options)
    with peak_of_own_memory() as peak:
        start = clock()
        strategy.start(grid, ArrayRecord(initial), num_rounds=1)
        seconds = clock() - start - grid.seconds
    if any(exchange.dropped for exchange in strategy.history):
        raise RuntimeError("a client's answer was refused: the figures mean nothing")
    model_bytes = sum(t.numel() * t.element_size() for t in initial.values())
    return {
        "case": name,
        "clients": clients,
        "model_bytes": model_bytes,
        "server_seconds": seconds - matcher.watch.seconds,
        "matching_seconds": matcher.watch.seconds,
        "clients_seconds": grid.seconds,
        "peak_bytes": peak["bytes"],
        "peak_models": peak["bytes"] / model_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_cohorts", description=__doc__)
    parser.add_argument("--case", choices=list(CASES), default="VGG-9")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where replies wait (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        found = one_round(options.case, options.clients, options.folder or Path(temporary))
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for key, value in found.items():
        print(f"{key}: {value:,.1f}" if isinstance(value, float) else f"{key}: {value}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

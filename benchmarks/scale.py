"""CPU and memory of the server in a round with many clients, beside FedAvg's in the same run.

``python -m benchmarks.scale [--json FILE] [--cases NAME ...] [--clients N]``

Clients answer at once: with what they are sent and some noise, and with moments of random features.
What they and the grid take is not counted, and matching is counted apart. `--clients` gives every
case so many, for a machine that is shared. Peak memory includes the clients' answers, which are
there before the server pulls them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from benchmarks.measure import Stopwatch, clock, machine, peak_memory
from fedma_flwr import FedAvg, FedMA, protocol
from fedma_flwr.client_moment_sums import MomentSums
from fedma_flwr.matching import Matching
from fedma_flwr.strategy import DEFAULT_MATCHER
from fedma_flwr.structure import PermutationSpec, derive_spec
from fedma_flwr.tasks.cifar10 import VGG9
from fedma_flwr.tasks.mnist import LeNet
from fedma_flwr.testing import InProcessGrid

#: Of a client: standard deviation of its noise, rows of its moments.
NOISE, EXAMPLES, CLASSES = 0.01, 200, 10


class Case:
    """A model, one input for it, how many clients, and the ratio to reach."""

    def __init__(self, make: Callable[[], nn.Module], size: tuple[int, ...], clients: int) -> None:
        torch.manual_seed(0)
        self.make, self.input, self.clients, self.target = make, torch.zeros(2, *size), clients, 1.5


CASES = {"LeNet": Case(LeNet, (1, 28, 28), 500), "VGG-9": Case(VGG9, (3, 32, 32), 40)}


class AnsweringGrid(InProcessGrid):
    """A grid whose clients answer without training; `seconds` is what all of that takes."""

    def __init__(self, clients: int) -> None:
        super().__init__(ClientApp(), clients, intercept=answer)
        self.seconds = 0.0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run every message to its end."""
        messages, start = list(messages), clock()
        ids = super().push_messages(messages)
        self.seconds += clock() - start
        return ids


def answer(message: Message, context: Context) -> Message:
    """What a client of either strategy replies."""
    rng = torch.Generator().manual_seed(context.node_id)
    records = message.content.array_records
    sent = protocol.to_tensors(next(iter(records.values()), ArrayRecord()))
    metrics = MetricRecord({"num-examples": EXAMPLES})
    instruction = protocol.find_instruction(message.content)
    if instruction is None:
        return Message(_content(noisy(sent, sent, rng), metrics), reply_to=message)
    hello = instruction.kind == protocol.HELLO
    status = protocol.HELLO if hello else protocol.DONE
    report = protocol.Report(status, instruction.gives, str(context.node_id)).to_record()
    if instruction.head_module:
        head = f"{instruction.head_module}."
        biases = [t for n, t in sent.items() if t.dim() == 1 and not n.startswith(head)]
        tensors = moments(biases[-1], rng)
    else:
        tensors = noisy(sent, instruction.uploads, rng)
    content = _content(tensors, metrics)
    content[protocol.FEDMA_KEY] = report
    return Message(content, reply_to=message)


def _content(tensors: dict[str, Tensor], metrics: MetricRecord) -> RecordDict:
    return RecordDict({"arrays": protocol.to_arrays(tensors), "metrics": metrics})


def noisy(sent: dict[str, Tensor], names: Iterable[str], rng: torch.Generator) -> dict[str, Tensor]:
    """The named tensors, as if something had been learned."""
    return {n: sent[n] + NOISE * torch.randn(sent[n].shape, generator=rng) for n in names}


def moments(last_bias: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
    """Moments of random features of the last hidden layer, whose bias tells its width."""
    features = torch.randn(EXAMPLES, len(last_bias), generator=rng).relu()
    targets = torch.eye(CLASSES)[torch.arange(EXAMPLES) % CLASSES]
    sums = MomentSums()
    sums.add(features, targets, EXAMPLES)
    return sums.moments()


class TimedMatcher:
    """The default matcher beside a clock."""

    output = "mean"

    def __init__(self) -> None:
        self.watch = Stopwatch(self._match)

    def _match(self, arguments: tuple[Any, dict[str, Any]]) -> Matching:
        return DEFAULT_MATCHER.match(arguments[0], **arguments[1])

    def match(
        self,
        units: Any,
        *,
        weights: Any = None,
        max_width: int | None = None,
        seed: int = 0,
    ) -> Matching:
        """See `Matcher`."""
        options = {"weights": weights, "max_width": max_width, "seed": seed}
        matching = self.watch((units, options))
        assert isinstance(matching, Matching)
        return matching


def one_round(case: Case, clients: int, spec: PermutationSpec | None) -> dict[str, float]:
    """CPU seconds of the server, of matching, and peak memory; FedAvg's without a spec."""
    torch.manual_seed(0)
    initial, grid, timed = ArrayRecord(case.make().state_dict()), AnsweringGrid(clients), None
    options: dict[str, Any] = {"min_available_nodes": clients, "fraction_evaluate": 0.0}
    if spec is None:
        strategy: FedMA | FedAvg = FedAvg(**options)
    else:
        timed = TimedMatcher()
        strategy = FedMA(spec=spec, matcher=timed, **options)
    with peak_memory() as peak:
        start = clock()
        strategy.start(grid, initial, num_rounds=1)
        seconds = clock() - start - grid.seconds
    matching = timed.watch.seconds if timed else 0.0
    if any(exchange.dropped for exchange in strategy.history):
        raise RuntimeError("a client's answer was refused: the figures mean nothing")
    return {"seconds": seconds - matching, "matching": matching, "peak_bytes": peak["bytes"]}


def compare(case: Case, clients: int) -> dict[str, Any]:
    """FedAvg's round, and FedMA's after it."""
    model = case.make()
    spec = derive_spec(model, (case.input,))
    model_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    fedavg, fedma = one_round(case, clients, None), one_round(case, clients, spec)
    return {
        "clients": clients,
        "model_bytes": model_bytes,
        "fedavg": fedavg,
        "fedma": fedma,
        "ratio": fedma["seconds"] / fedavg["seconds"],
        "target": case.target,
        "models_per_client": fedma["peak_bytes"] / clients / model_bytes,
    }


COLUMNS = (
    "| model | clients | FedAvg s | FedMA s | ratio | target | matching s "
    "| peak: FedAvg MB | FedMA MB | models a client |"
)


def row(name: str, r: dict[str, Any]) -> str:
    """Return one line of the table."""
    fedavg, fedma = r["fedavg"], r["fedma"]
    return (
        f"| {name} | {r['clients']} | {fedavg['seconds']:.2f} | {fedma['seconds']:.2f} "
        f"| {r['ratio']:.2f} | <= {r['target']} | {fedma['matching']:.2f} "
        f"| {fedavg['peak_bytes'] / 1e6:.0f} | {fedma['peak_bytes'] / 1e6:.0f} "
        f"| {r['models_per_client']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The server's CPU and memory by the cohort.")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--clients", type=int, help="so many in every case")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    results: dict[str, Any] = {"machine": machine(), "load": load, "cases": {}}
    print(
        ", ".join(f"{key} {value}" for key, value in results["machine"].items()), f"load {load:.1f}"
    )
    one_round(CASES["LeNet"], 2, None)  # first calls of the libraries
    print(COLUMNS, "|" + "---|" * (COLUMNS.count("|") - 1), sep="\n")
    for name in options.cases:
        case = CASES[name]
        results["cases"][name] = compare(case, options.clients or case.clients)
        print(row(name, results["cases"][name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Accuracy on real digits with hostile clients, and with clients that get lost.

``python -m benchmarks.faults [--json FILE] [--only hostile loss] [--seeds 0 1 2] [--head solved]``
runs the small problem of `benchmarks.digits`: ten clients, three rounds. *hostile*: two of the ten
send well-formed poison in every stage, under each way of averaging. *loss*: every client fails in
each stage with some probability, and is out for the rest of the round. A FILE of an earlier run
that was cut short is continued.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, Context, Message

from benchmarks.digits import CLIENTS, ROUNDS, run
from benchmarks.measure import machine
from fedma_flwr.protocol import CROSS_KEY, GRAM_KEY

HOSTILE = 2  # the last two clients
AVERAGES = ("mean", "median", "trimmed_mean")
LOSSES = (0.0, 0.1, 0.3, 0.5)
BUNDLES = (1, "all")  # 4 and 2 exchanges a round
PLANS = {"trained": {}, "solved": {"groups_per_stage": "all", "head": "solved"}}
#: Just within `max_norm_ratio` of what a client of the usual size would send.
SCALE = 9.0

Row = dict[str, Any]
Change = Callable[[dict[str, np.ndarray], np.random.Generator], dict[str, np.ndarray]]


def flip(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """All signs are turned round."""
    return {name: -values for name, values in arrays.items()}


def noise(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random numbers of the usual size."""
    return {n: rng.normal(0, np.sqrt((v**2).mean()), v.shape) for n, v in arrays.items()}


def scale(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """As large as the bound allows, with the signs turned round."""
    return {name: -SCALE * values for name, values in arrays.items()}


def shift(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Only the head is wrong: it says c + 1 for every class c."""
    return {n: np.roll(v, 1, axis=0) if n.startswith("fc2") else v for n, v in arrays.items()}


def relabel(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Only the moments of the head are wrong: every class is called c + 1."""
    return {n: np.roll(v, 1, axis=0) if n == CROSS_KEY else v for n, v in arrays.items()}


def enlarge(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The moments are those of inputs three times as large, of wrong classes."""
    changed = relabel(arrays, rng)
    if CROSS_KEY in changed:
        counts = changed[CROSS_KEY][:, -1:]
        changed[CROSS_KEY] = np.concatenate([3 * changed[CROSS_KEY][:, :-1], counts], axis=1)
        changed[GRAM_KEY] = 9 * changed[GRAM_KEY]
    return changed


def invert(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The moments are those of inputs with the signs turned round."""
    changed = dict(arrays)
    if CROSS_KEY in changed:
        counts = changed[CROSS_KEY][:, -1:]
        changed[CROSS_KEY] = np.concatenate([-changed[CROSS_KEY][:, :-1], counts], axis=1)
    return changed


def zero(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Nothing at all."""
    return {name: np.zeros_like(values) for name, values in arrays.items()}


#: Name, what is done to the arrays, and whether the counts are lies too.
ATTACKS: dict[str, tuple[Change, bool]] = {
    "signs flipped": (flip, False),
    "random": (noise, False),
    "zeros": (zero, False),
    "flipped, as large as allowed": (scale, False),
    "head shifted by one class": (shift, False),
    "head shifted, counts of 2^53": (shift, True),
    "flipped, counts of 2^53": (flip, True),
}
#: With a solved head.
MOMENT_ATTACKS: dict[str, tuple[Change, bool]] = {
    "moments of wrong classes": (relabel, False),
    "moments of wrong classes, counts of 2^53": (relabel, True),
    "moments of wrong classes, inputs three times as large": (enlarge, False),
    "moments of inverted inputs": (invert, False),
}
#: Clients that train on wrong labels and are honest otherwise.
LABELS = "trained on labels c + 1"


def hostile(attack: str, seed: int) -> Callable[..., Message]:
    """A mod that makes the last clients hostile in every stage."""
    change, lies = {**ATTACKS, **MOMENT_ATTACKS}[attack]
    rng = np.random.default_rng(seed)

    def poison(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = call_next(message, context)
        arrays = None if reply.has_error() else reply.content.array_records.get("arrays")
        if arrays is None or int(context.node_config["partition-id"]) < CLIENTS - HOSTILE:
            return reply
        changed = change({name: array.numpy() for name, array in arrays.items()}, rng)
        for name, values in changed.items():
            arrays[name] = Array(np.ascontiguousarray(values, dtype=np.float32))
        if lies:
            metrics = reply.content.metric_records["metrics"]
            metrics["num-examples"], metrics["class-counts"] = 2**53, [2**53] * 10
        return reply

    return poison


def loser(probability: float, seed: int) -> Callable[[Message, Context], None]:
    """An interceptor in which each message but a hello gets lost with some probability."""
    rng = np.random.default_rng([seed, 1])

    def intercept(message: Message, context: Context) -> None:
        if message.content["fedma"]["kind"] != "hello" and rng.random() < probability:
            raise ConnectionError("lost")

    return intercept


def jobs(arguments: argparse.Namespace) -> Iterator[tuple[Row, dict]]:
    """What identifies each run, and how to do it."""
    for seed in arguments.seeds:
        base = {"seed": seed, "alpha": arguments.alpha}
        if "hostile" in arguments.only:
            for average in arguments.averages:
                row = {"kind": "hostile", "averaging": average, "head": arguments.head, **base}
                options = {"averaging": average, **PLANS[arguments.head]}
                # The run without them: their digits are not there either.
                yield {**row, "attack": "none"}, {"clients": CLIENTS - HOSTILE, **options}
                for attack in arguments.attacks:
                    poison: dict[str, Any] = (
                        {"mislabelled": HOSTILE}
                        if attack == LABELS
                        else {"mods": [hostile(attack, seed)]}
                    )
                    yield {**row, "attack": attack}, {**poison, **options}
        if "loss" in arguments.only:
            for bundle in BUNDLES:
                for loss in LOSSES:
                    row = {"kind": "loss", "groups_per_stage": bundle, "loss": loss, **base}
                    yield row, {"intercept": loser(loss, seed), "groups_per_stage": bundle}


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Run what is not in the file yet; rows are printed, and written as they come."""
    file = arguments.json
    rows: list[Row] = json.loads(file.read_text())["rows"] if file and file.exists() else []
    for place, options in jobs(arguments):
        if any(place.items() <= row.items() for row in rows):
            continue
        outcome = run(seed=place["seed"], alpha=place["alpha"], **options)
        history = outcome.strategy.history
        rows.append(
            {
                **place,
                "accuracies": outcome.accuracies,
                "given_up": len(history.given_up),
                "dropped": sum(len(record.dropped) for record in history),
                "growth": max(record.growth for record in history),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        if file:
            file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    return rows


def hostile_table(rows: Sequence[Row]) -> str:
    """Final accuracy, mean over the seeds; in brackets the change from the mean without them."""
    final = {(r["attack"], r["averaging"], r["seed"]): r["accuracies"][-1] for r in rows}
    averages = [average for average in AVERAGES if any(average in key for key in final)]
    lines = [["attack", *(f"`{average}`" for average in averages)], ["---"] * (len(averages) + 1)]
    for attack in ("none", *ATTACKS, *MOMENT_ATTACKS, LABELS):
        cells = [_cell(final, attack, average) for average in averages]
        if any(cells):
            lines.append([attack, *cells])
    return _markdown(lines)


def _cell(final: dict[tuple[str, str, int], float], attack: str, average: str) -> str:
    seeds = [s for a, v, s in final if (a, v) == (attack, average) and ("none", "mean", s) in final]
    if not seeds:
        return ""
    accuracy = np.mean([final[attack, average, seed] for seed in seeds])
    change = accuracy - np.mean([final["none", "mean", seed] for seed in seeds])
    return f"{accuracy:.3f} ({change:+.3f}; {len(seeds)} seeds)"


def loss_table(rows: Sequence[Row]) -> str:
    """Accuracy after each round, means over the seeds."""
    head = [
        "`groups_per_stage`",
        "loss per stage",
        *(f"after round {n + 1}" for n in range(ROUNDS)),
    ]
    lines = [[*head, "clients dropped", "rounds given up", "seeds"], ["---"] * (ROUNDS + 5)]
    for bundle, loss in dict.fromkeys((row["groups_per_stage"], row["loss"]) for row in rows):
        of = [row for row in rows if (row["groups_per_stage"], row["loss"]) == (bundle, loss)]
        accuracies = np.mean([row["accuracies"] for row in of], axis=0)
        counts = [np.mean([row[key] for row in of]) for key in ("dropped", "given_up")]
        cells = [f"{accuracy:.3f}" for accuracy in accuracies]
        cells += [*(f"{count:.1f}" for count in counts), str(len(of))]
        lines.append([f"`{bundle}`", f"{100 * loss:.0f} %", *cells])
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    kinds = {"hostile": hostile_table, "loss": loss_table}
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--only", nargs="+", choices=list(kinds), default=list(kinds))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet distribution")
    parser.add_argument("--averages", nargs="+", choices=AVERAGES, default=list(AVERAGES))
    parser.add_argument("--head", choices=list(PLANS), default="trained", help="how it is made")
    every = [*ATTACKS, *MOMENT_ATTACKS, LABELS]
    parser.add_argument("--attacks", nargs="*", choices=every, default=list(ATTACKS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure(options)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for kind in options.only:
        print(kinds[kind]([row for row in rows if row["kind"] == kind]))


if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    main()

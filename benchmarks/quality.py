"""First-round accuracy of FedMA on real digits, matcher by matcher.

Run ``python -m benchmarks.quality [--alphas 0.5 0.1] [--seeds 10 11 12] [--json FILE]``. Ten
clients train the MNIST task's LeNet from their own initialisations; the shipped apps then run
one communication round on the in-process grid, stage protocol and all. Within a seed all
matchers get the same local models, trained once. A FILE of an earlier run that was cut short is
continued.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine
from simulations.methods import InProcess, app_defaults

CONFIG = {
    "groups-per-stage": "1",  # the plan in which matching is looked at layer by layer
    "head": "trained",
    "strategy": "fedma",
    "num-server-rounds": 1,
    "initialisation": "own",
    "local-epochs": 20,
    "retrain-epochs": 5,
}
ONES = {"local-variance": 1.0, "prior-variance": 1.0}
REFERENCE = "BBPMAP.reference()"
MATCHERS: dict[str, dict[str, Any]] = {
    "BBPMAP()": {
        "matcher": "bbpmap",
        "gamma": 1.0,
        "local-variance": 0.0,
        "prior-variance": 0.0,
        "output": "mean",
    },
    "BBPMAP(gamma=1, local_variance=1, prior_variance=1)": {
        "matcher": "bbpmap",
        "gamma": 1.0,
        "output": "mean",
        **ONES,
    },
    REFERENCE: {"matcher": "reference", "gamma": 7.0, "output": "posterior", **ONES},
    'BBPMAP.reference(output="mean")': {
        "matcher": "reference",
        "gamma": 7.0,
        "output": "mean",
        **ONES,
    },
    "BBPMAP.learned()": {"matcher": "learned", "gamma": 7.0, "output": "posterior", **ONES},
    "IdentityMatching()": {"matcher": "identity"},
}

Row = dict[str, Any]


def first_round(
    matcher: str, *, seed: int, alpha: float, local_models: Path, clients: int = 10, **config: Any
) -> Row:
    """Run one communication round of FedMA with a matcher.

    Parameters
    ----------
    matcher : str
        A key of `MATCHERS`.
    seed : int
        Of the partition, the clients' weights, the shuffling and the matcher.
    alpha : float
        Of the Dirichlet distribution over the clients.
    local_models : Path
        Folder of this seed's and alpha's local models; they are trained if they are not there.
    clients : int (default: 10)
    **config
        Overrides of other config keys, with underscores for hyphens.

    Returns
    -------
    dict
        Accuracy (0..1), widths by group, growth of the parameters, megabytes sent by clients.
    """
    overrides = {key.replace("_", "-"): value for key, value in config.items()}
    place = {"seed": seed, "alpha": alpha, "local-models": str(local_models)}
    settings = {**app_defaults(), **CONFIG, **MATCHERS[matcher], **place, **overrides}
    start = time.perf_counter()
    (entry,) = InProcess()(settings, clients)
    return {
        "alpha": alpha,
        "seed": seed,
        "matcher": matcher,
        "accuracy": entry["accuracy"],
        "widths": entry["widths"],
        "growth": entry["growth"],
        "megabytes_up": entry["bytes_up"] / 1e6,
        "seconds": round(time.perf_counter() - start, 1),
    }


def table(rows: Sequence[Row]) -> str:
    """Return the means over the seeds as a Markdown table.

    The difference from `REFERENCE` is taken seed by seed; its standard error is in brackets.
    """
    head = ["alpha", "matcher", "seeds", "accuracy", "std", "less reference()"]
    head += ["global widths (conv1, conv2, fc1)", "growth", "MB up"]
    lines = [head, ["---"] * len(head)]
    for alpha in dict.fromkeys(row["alpha"] for row in rows):
        of_alpha = [row for row in rows if row["alpha"] == alpha]
        base = {r["seed"]: r["accuracy"] for r in of_alpha if r["matcher"] == REFERENCE}
        for matcher in dict.fromkeys(row["matcher"] for row in of_alpha):
            group = [row for row in of_alpha if row["matcher"] == matcher]
            lines.append([str(alpha), f"`{matcher}`", *_cells(group, base)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(rows: Sequence[Row], base: dict[int, float]) -> list[str]:
    accuracy = np.array([row["accuracy"] for row in rows])
    gaps = np.array([r["accuracy"] - base[r["seed"]] for r in rows if r["seed"] in base])
    widths = np.mean([list(row["widths"].values()) for row in rows], axis=0)
    return [
        str(len(rows)),
        f"{accuracy.mean():.3f}",
        f"{_std(accuracy):.3f}",
        f"{gaps.mean():+.3f} ({_std(gaps) / len(gaps) ** 0.5:.3f})" if len(gaps) else "",
        ", ".join(f"{width:.0f}" for width in widths),
        f"{np.mean([row['growth'] for row in rows]):.2f}",
        f"{np.mean([row['megabytes_up'] for row in rows]):.1f}",
    ]


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def measure(arguments: argparse.Namespace) -> list[Row]:
    """Run what is not in the file yet; rows are printed, and written as they come."""
    file = arguments.json and Path(arguments.json)
    rows: list[Row] = json.loads(file.read_text())["rows"] if file and file.exists() else []
    done = {(row["alpha"], row["seed"], row["matcher"]) for row in rows}
    for alpha in arguments.alphas:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(arguments.models or temporary) / f"{alpha}-{seed}"
                for matcher in arguments.matchers:
                    if (alpha, seed, matcher) in done:
                        continue
                    rows.append(first_round(matcher, seed=seed, alpha=alpha, local_models=folder))
                    print(json.dumps(rows[-1]), flush=True)
                    if file:
                        result = {"machine": machine(), "config": CONFIG, "rows": rows}
                        file.write_text(json.dumps(result, indent=1))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.5, 0.1])
    parser.add_argument("--matchers", nargs="+", choices=list(MATCHERS), default=list(MATCHERS))
    parser.add_argument("--models", help="folder to keep the local models in")
    parser.add_argument("--json", help="file to write the rows to")
    rows = measure(parser.parse_args())
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(table(rows))


if __name__ == "__main__":
    main()

"""The package's own expansion and head average, against what the paper's code gave."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedma_flwr.averaging import ClientUpdate, settle_stage
from fedma_flwr.matching import BBPMAP
from fedma_flwr.structure import PermutationSpec, StagePlan

DATA = Path(__file__).parents[1] / "data"


def load(name):
    with np.load(DATA / f"{name}.npz") as archive:
        case = {key: archive[key] for key in archive.files}
    return case, json.loads(str(case.pop("meta")))


@pytest.mark.parametrize("kind", ["conv", "fc", "dense"])
def test_expand_pads_inputs_as_the_reference_does(kind):
    case, meta = load("p01_patching")
    local, assignment = torch.from_numpy(case[f"{kind}_in"]), case[f"{kind}_assign"]
    block = local.shape[1] // len(assignment)  # inputs that one unit of the layer below feeds
    spec = PermutationSpec(
        groups={"below": len(assignment)},
        axes={"weight": f"{len(local)}, below x {block}"},
    )
    expanded = spec.expand(
        {"weight": local},
        {"below": torch.from_numpy(assignment.astype(np.int64))},
        {"below": meta[f"{kind}_global_in"]},
    )
    assert np.array_equal(expanded["weight"].numpy(), case[f"{kind}_out"])


def test_the_head_is_averaged_as_the_reference_does():
    case, meta = load("c01_oneshot_lenet")
    clients, width = range(meta["J"]), meta["global_widths"][-1]
    spec = PermutationSpec(
        groups={"fc1": meta["local_widths"][-1]},
        axes={"fc1.bias": "fc1", "fc2.weight": "10, fc1", "fc2.bias": "10"},
    )
    updates = []
    for client in clients:
        head = {
            name: torch.from_numpy(case[f"client{client}.{name}"])
            for name in ("fc2.weight", "fc2.bias")
        }
        units = torch.from_numpy(case[f"assignment_layer2_client{client}"].astype(np.int64))
        wide = spec.expand(head, {"fc1": units}, {"fc1": width})
        counts = torch.from_numpy(case["class_counts"][client])
        updates.append(ClientUpdate(wide, float(counts.sum()), counts))
    outcome = settle_stage(
        spec,
        StagePlan.build(spec)[1],
        updates,
        matched=frozenset({"fc1"}),
        matcher=BBPMAP(),
        max_widths={"fc1": width},
    )
    assert outcome.head_by_class
    head = outcome.tensors
    np.testing.assert_allclose(head["fc2.weight"].numpy().T, case["global.fc2.weight"], atol=1e-5)
    np.testing.assert_allclose(head["fc2.bias"].numpy(), case["global.fc2.bias"], atol=1e-5)

"""The authors' code's outputs on synthetic data, exactly."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP

DATA = Path(__file__).parent.parent / "data"


def load(name):
    case = np.load(DATA / f"{name}.npz", allow_pickle=False)
    return case, json.loads(str(case["meta"]))


def find(pattern):
    return sorted(path.stem for path in DATA.glob(pattern))


def assert_same_assignments(matching, case, pattern):
    for client, assignment in enumerate(matching.assignments):
        np.testing.assert_array_equal(assignment, case[pattern.format(client)])


@pytest.mark.parametrize("name", find("m*.npz"))
def test_fixed_variances_reproduce_the_reference(name):
    case, meta = load(name)
    units = [case[f"w_{client}"] for client in range(meta["J"])]
    matcher = BBPMAP.reference(meta["gamma"], meta["sigma"], meta["sigma0"], meta["it"])

    matching = matcher.match(units, prior_mean=case["mean_prior"], orders=case["orders"])

    assert_same_assignments(matching, case, "assignment_{}")
    np.testing.assert_array_equal(matching.popularity, case["popularity"])
    np.testing.assert_allclose(matching.units, case["global_map"], atol=1e-6, rtol=0)
    np.testing.assert_allclose(matching.objective, case["objective"], rtol=1e-6)


@pytest.mark.parametrize("name", find("s*.npz"))
def test_learned_variances_reproduce_the_reference(name):
    case, meta = load(name)
    units = [case[f"w_{client}"] for client in range(meta["J"])]
    matcher = BBPMAP.learned(
        meta["gamma"], meta["sigma"], meta["sigma0"], meta["it"], fit=meta["optimize_hyper"]
    )

    matching = matcher.match(units, orders=case["orders"])

    assert_same_assignments(matching, case, "assignment_{}")
    np.testing.assert_array_equal(matching.popularity, case["popularity"])
    np.testing.assert_allclose(matching.units, case["global_map"], atol=1e-5, rtol=0)


def spread(rows, assignment, width, block=1):
    """Zero-pad the input side: block ``assignment[l]`` of the result is block l of ``rows``."""
    blocks = rows.reshape(len(rows), -1, block)
    out = np.zeros((len(rows), width, block), dtype=rows.dtype)
    out[:, assignment] = blocks
    return out.reshape(len(rows), -1)


def test_input_sides_are_spread_as_in_the_reference():
    case, meta = load("p01_patching")

    for kind, width, block in [
        ("conv", meta["conv_global_in"], meta["conv_kernel"] ** 2),
        ("fc", meta["fc_global_in"], meta["fc_spatial"]),
        ("dense", meta["dense_global_in"], 1),
    ]:
        spread_out = spread(case[f"{kind}_in"], case[f"{kind}_assign"], width, block)
        np.testing.assert_array_equal(spread_out, case[f"{kind}_out"])


def test_one_shot_lenet_reproduces_the_reference():
    case, meta = load("c01_oneshot_lenet")
    clients = range(meta["J"])
    weight = {
        (client, name): case[f"client{client}.{name}.weight"].reshape(
            len(case[f"client{client}.{name}.bias"]), -1
        )
        for client in clients
        for name in ("conv1", "conv2", "fc1", "fc2")
    }
    matcher = BBPMAP.reference(meta["gamma"])
    matching = None

    # The block of inputs that one unit of the layer below feeds.
    for layer, (name, block) in enumerate([("conv1", None), ("conv2", 25), ("fc1", 16)]):
        units = []
        for client in clients:
            rows = weight[client, name]
            if matching is not None:
                rows = spread(rows, matching.assignments[client], matching.width, block)
            units.append(np.hstack([rows, case[f"client{client}.{name}.bias"][:, None]]))
        # The reference's bias prior is on the bias in the first layer only.
        mean = np.zeros(units[0].shape[1])
        mean[-1 if layer == 0 else 0] = 0.1
        matching = matcher.match(units, prior_mean=mean, orders=case["orders"][layer])

        assert_same_assignments(matching, case, f"assignment_layer{layer}_client{{}}")
        expected = case[f"global.{name}.weight"]
        expected = expected.T if name == "fc1" else expected
        np.testing.assert_allclose(matching.units[:, :-1], expected, atol=1e-5)
        np.testing.assert_allclose(matching.units[:, -1], case[f"global.{name}.bias"], atol=1e-5)

    head = sum(
        case["averaging_weights"][client][:, None]
        * spread(weight[client, "fc2"], matching.assignments[client], matching.width)
        for client in clients
    )
    np.testing.assert_allclose(head.T, case["global.fc2.weight"], atol=1e-5)


@pytest.mark.parametrize("name", find("l*.npz"))
def test_embedding_and_lstm_reproduce_the_reference(name):
    case, meta = load(name)
    clients = range(meta["J"])
    matcher = BBPMAP.reference(meta["gamma"], output="mean")

    columns = [case[f"client{client}.encoder.weight"].T for client in clients]
    embedding = matcher.match(columns, orders=case["orders"][0])
    assert_same_assignments(embedding, case, "assignment_layer0_client{}")
    np.testing.assert_array_equal(embedding.popularity, case["pop_layer0"])
    np.testing.assert_allclose(embedding.units.T, case["global.encoder.weight"], atol=1e-5)

    states = []
    for client in clients:
        rows = spread(
            case[f"client{client}.rnn.weight_ih_l0"],
            embedding.assignments[client],
            embedding.width,
        )
        gates = rows.reshape(4, -1, embedding.width).transpose(1, 0, 2)
        bias = case[f"client{client}.rnn.bias_ih_l0"].reshape(4, -1).T
        states.append(np.hstack([gates.reshape(len(gates), -1), bias]))
    mean = np.r_[np.zeros(4 * embedding.width), np.full(4, 0.1)]
    hidden = matcher.match(states, prior_mean=mean, orders=case["orders"][1])
    assert_same_assignments(hidden, case, "assignment_layer1_client{}")
    np.testing.assert_array_equal(hidden.popularity, case["pop_layer1"])
    gates = hidden.units[:, :-4].reshape(hidden.width, 4, -1).transpose(1, 0, 2)
    np.testing.assert_allclose(
        gates.reshape(4 * hidden.width, -1), case["global.rnn.weight_ih_l0"], atol=1e-5
    )

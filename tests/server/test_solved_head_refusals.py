"""A head that cannot be solved, and moments that are wrong: refused with the reason."""

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.exception import AggregationError
from torch import nn
from torch.nn import functional

from fedma_flwr import FedMA, Stage, load_model
from fedma_flwr.averaging import (
    ClientUpdate,
    oversized_moments,
)
from fedma_flwr.protocol import CROSS_KEY, EXPECTED_KEY, GRAM_KEY
from fedma_flwr.structure import PermutationSpec, linear_head, sequential_spec
from tests.averaging.test_head_moments import examples, moments_of
from tests.server.solved_head import TWO_EXCHANGES, run, stages
from tests.toy import CLIENTS, Net, data, fit, make_app, reply


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head": "averaged"}, r"head was 'averaged'; it must be 'auto', 'solved' or 'trained'"),
        ({"head_start": "own"}, r"head_start was 'own'; it must be 'auto', 'averaged' or 'solved'"),
        ({"head_fraction": 1.5}, r"head_fraction was 1.5; it must lie between 0 and 1"),
        ({"one_shot": True, "groups_per_stage": 1}, r"one_shot=True.*head='solved'"),
    ],
)
def test_wrong_arguments_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        FedMA(**{**TWO_EXCHANGES, **options})


def test_a_model_whose_head_cannot_be_solved_is_refused_with_the_reason():
    convolved = sequential_spec(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)))
    with pytest.raises(ValueError, match=r"cannot be solved: '2.weight' is neither.*trained"):
        FedMA(spec=convolved, head="solved")


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"b.weight": "2, a", "c.weight": "3, a"}, "not one layer"),
        ({"b.weight": "2, a", "b.bias": "2", "b.scale": "2"}, "other tensors"),
        ({"b.weight": "2, a, 3, 3"}, "1 x 1"),
    ],
)
def test_heads_that_are_not_one_linear_layer(axes, words):
    spec = PermutationSpec({"a": 4}, {"a.weight": "a, 2", **axes})

    assert words in linear_head(spec)


def test_a_loss_that_tells_no_targets_fails_the_run_with_the_way_out():
    def train(message, context, client):
        model = load_model(Net(), message)
        x, y = data(client)
        functional.huber_loss(model(x), 5 + functional.one_hot(y, 2).float()).backward()
        return reply(message, model, client)

    with pytest.raises(AggregationError, match=r"the loss is neither.*head_moments.*trained"):
        run(make_app(train))  # head="solved": who says so wants no other


def test_a_train_function_that_changes_settled_tensors_is_named():
    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        with torch.no_grad():
            model.a.bias += Stage.from_message(message).solves_head
        return reply(message, model, client)

    with pytest.raises(AggregationError, match=r"settled tensor 'a.bias' was changed"):
        run(make_app(train))


def tampered(change):
    """An interceptor that lets client 0 change the moments in its reply."""
    app = make_app(steps=10)

    def intercept(message, context):
        answer = app(message, context)
        if answer.has_error() or context.node_config["partition-id"] != 0:
            return answer
        arrays = answer.content.array_records.get("arrays")
        if arrays is not None and GRAM_KEY in arrays:
            tensors = arrays.to_torch_state_dict()
            answer.content["arrays"] = ArrayRecord(change(dict(tensors)))
        return answer

    return intercept


def broken(name, value):
    return lambda tensors: {**tensors, name: value(tensors[name])}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (broken(GRAM_KEY, lambda t: t * float("nan")), "not finite"),
        (broken(GRAM_KEY, lambda t: -t), "negative squares"),
        (broken(GRAM_KEY, lambda t: t[:-1]), "cannot be decoded"),
        (broken(CROSS_KEY, lambda t: t.double()), "was expected"),
        (broken(CROSS_KEY, lambda t: t * 1e3), "class sums"),
        (broken(EXPECTED_KEY, lambda t: t * 1e3), "class sums"),
        (broken(EXPECTED_KEY, lambda t: t.flip(1)), "class sums"),
        (broken(EXPECTED_KEY, lambda t: -t), "class counts"),
        (broken(EXPECTED_KEY, lambda t: t * 0.5), "does not sum up"),
        (lambda t: {GRAM_KEY: t[GRAM_KEY]}, "instead of the moments"),
        (
            lambda t: {
                GRAM_KEY: t[GRAM_KEY] * 900,
                **{
                    name: torch.cat([t[name][:, :-1] * 30, t[name][:, -1:]], 1)
                    for name in (CROSS_KEY, EXPECTED_KEY)
                },
            },
            "max_norm_ratio",
        ),
    ],
)
def test_a_client_whose_moments_are_wrong_is_dropped_alone(change, words):
    strategy = run(intercept=tampered(change), rounds=1)

    record = stages(strategy)[1]
    assert list(record.dropped) == ["0"]
    assert words in record.dropped["0"]
    assert record.answered == CLIENTS - 1


def test_larger_inputs_than_usual_are_refused_beyond_the_ratio():
    phi, y = examples(0)
    sizes = {0: 1.0, 1: 1.1, 2: 4.9, 3: 5.6}
    updates = {n: ClientUpdate({}, 40.0, None, moments_of(s * phi, y)) for n, s in sizes.items()}

    assert list(oversized_moments(updates, 5.0)) == [3]  # the median is 1.1

"""A narrow client computes, holds and sends as much as its own small model asks for."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fedma_flwr import FedMA, fedma_mod, load_model
from fedma_flwr.protocol import Instruction
from fedma_flwr.testing import InProcessGrid

QUARTER = 0.25
INPUTS = torch.zeros(2, 1, 28, 28)


class Net(nn.Module):
    """A convolution and a hidden layer, which a factor makes small by hand."""

    def __init__(self, factor=1.0):
        super().__init__()
        channels, hidden = int(8 * factor), int(64 * factor)
        self.conv = nn.Conv2d(1, channels, 3, stride=2)
        self.hidden = nn.Linear(channels * 169, hidden)
        self.head = nn.Linear(hidden, 10)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def place(tensor):
    return tensor.untyped_storage().data_ptr()


class Tensors(TorchDispatchMode):
    """Notes the sizes of what operators put in new memory, unless it is paused."""

    def __init__(self):
        super().__init__()
        self.sizes, self.paused = [], False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.paused:
            known = {place(tensor) for tensor in tensors_in((args, kwargs))}
            self.sizes += [t.numel() for t in tensors_in(out) if place(t) not in known]
        return out


OWN = sum(len(a.data) for a in ArrayRecord(Net(QUARTER).state_dict()).values())


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def sent(content):
    """The bytes of a message's numbers, the strategy's own included."""
    arrays = (
        len(array.data) for record in content.array_records.values() for array in record.values()
    )
    values = (value for record in content.config_records.values() for value in record.values())
    return sum(arrays) + sum(len(value) for value in values if isinstance(value, bytes | str))


def turns(width, factor=1.0, clients=3, watched=0):
    """What the first client does in each exchange of two rounds: its turns with the train function.

    Parameters
    ----------
    width : float
        Its ratio; the others are as wide as the model.
    factor : float
        Of the model that the server has.
    """
    noted = []

    def watch(message, context, call_next):
        key = context.node_config["partition-id"]
        kind = Instruction.from_record(message.content["fedma"]).kind
        if key != watched or kind == "hello":
            return call_next(message, context)
        down = sent(message.content)
        seen["tensors"] = tensors = Tensors()
        with tensors, FlopCounterMode(display=False) as flops:
            answer = call_next(message, context)
        turn = {"down": down, "up": sent(answer.content), "flops": flops.get_total_flops()}
        noted.append({**turn, "largest": max(tensors.sizes), **seen})
        return answer

    app, seen = ClientApp(mods=[watch, fedma_mod]), {"tensors": Tensors()}

    @app.train()
    def train(message, context):
        seen["tensors"].paused = True  # the app's own code builds the whole model
        model = Net(factor)
        seen["tensors"].paused = False
        model = load_model(model, message)
        seen["shapes"] = shapes(model)
        client = context.node_config["partition-id"]
        generator = torch.Generator().manual_seed(client)
        x, y = torch.randn(40, 1, 28, 28, generator=generator), torch.arange(40) % 10
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for batch in range(0, 40, 20):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[batch : batch + 20]), y[batch : batch + 20])
            loss.backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": 40})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    model = Net(factor)
    strategy = FedMA(
        model=model,
        example_inputs=(INPUTS,),
        client_widths={"0": width},
        fraction_evaluate=0.0,
    )
    strategy.start(InProcessGrid(app, clients), ArrayRecord(model.state_dict()), num_rounds=2)
    assert not any(record.dropped for record in strategy.history)
    return noted


@pytest.fixture(scope="module")
def narrow():
    return turns(QUARTER)


@pytest.fixture(scope="module")
def alone():
    """The same client in a run whose model is its own small one, which nobody cut."""
    return turns(1.0, factor=QUARTER)


def test_its_model_has_the_widths_of_the_small_one(narrow):
    assert len(narrow) == 4  # two exchanges a round
    assert all(turn["shapes"] == shapes(Net(QUARTER)) for turn in narrow)


def test_training_takes_as_many_operations(narrow, alone):
    assert [turn["flops"] for turn in narrow[::2]] == [turn["flops"] for turn in alone[::2]]
    assert 0 < narrow[0]["flops"] < turns(1.0)[0]["flops"] / 6


def test_the_head_stage_takes_no_more(narrow, alone):
    """A run of small models alone measures the head's reference step, too."""
    pairs = zip(narrow[1::2], alone[1::2], strict=True)
    assert all(0 < ours["flops"] <= theirs["flops"] for ours, theirs in pairs)


def test_no_tensor_is_larger_once_the_apps_own_code_has_built_its_model(narrow, alone):
    assert [turn["largest"] for turn in narrow] == [turn["largest"] for turn in alone]


@pytest.mark.parametrize("way", ["down", "up"])
def test_a_round_costs_at_most_a_tenth_more_bytes_than_its_model(narrow, way):
    first, later = (sum(turn[way] for turn in turns) / OWN for turns in (narrow[:2], narrow[2:]))
    assert later <= 1.1
    # The first round sends every client a whole model to start from, besides.
    assert first <= (2.1 if way == "down" else 1.1)


def test_no_exchange_costs_more_bytes_than_in_a_run_of_small_models_alone(narrow, alone):
    for ours, theirs in zip(narrow, alone, strict=True):
        assert ours["down"] <= theirs["down"]
        assert ours["up"] <= theirs["up"]

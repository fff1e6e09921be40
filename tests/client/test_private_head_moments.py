"""Private moments from a client's model, and what they and Opacus' accountant have spent."""

import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn
from torch.nn import functional

from fedma_flwr import keep_privacy, private_head_moments, restore_privacy
from fedma_flwr.averaging.head_moments import HeadMoments, fault_of
from fedma_flwr.client_moments import collecting
from fedma_flwr.client_privacy import is_private, without_opacus
from fedma_flwr.protocol import CROSS_KEY, GRAM_KEY, ClientError, to_tensors
from tests.client.test_client_moments import CLASSES, FEATURES, Net, expected, problem

NEARLY_NONE = {"noise_multiplier": 1e-9, "max_norm": 100.0, "head": "head"}


def moments_of(found):
    tensors = to_tensors(found.arrays)
    return HeadMoments(tensors[GRAM_KEY], tensors[CROSS_KEY])


def batches(size=32):
    x, y = problem()
    return list(zip(x.split(size), y.split(size), strict=True))


class Accountant:
    """As Opacus' are."""

    def __init__(self):
        self.history = []

    def step(self, *, noise_multiplier, sample_rate):
        self.history.append((noise_multiplier, sample_rate, 1))


def test_with_next_to_no_noise_they_are_the_moments():
    model = Net().train()
    found = moments_of(private_head_moments(model, batches(), **NEARLY_NONE))
    assert model.training
    x, y = problem()
    gram, cross = expected(model, x, functional.one_hot(y, CLASSES))
    torch.testing.assert_close(found.gram.double(), gram, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.cross.double(), cross, rtol=1e-4, atol=1e-5)


def test_inputs_that_are_too_long_are_scaled_down():
    found = moments_of(private_head_moments(Net(), batches(), **{**NEARLY_NONE, "max_norm": 1e-3}))
    places = torch.triu_indices(FEATURES, FEATURES)
    trace = float(found.gram[places[0] == places[1]].sum())
    assert trace <= 1e-6 * (1 + 1e-5)
    assert trace > 0


def test_they_are_noisy_differently_each_time_and_accepted():
    """Whatever seed the train function has set: noise that can be guessed protects nothing."""
    model, drawn = Net(), []
    for _ in range(2):
        torch.manual_seed(0)
        private = private_head_moments(
            model, batches(), max_norm=1.0, noise_multiplier=1.0, head="head"
        )
        drawn.append(moments_of(private))
        assert fault_of(drawn[-1]) == ""
        assert private.rho == 0.5
        assert private.epsilon(1e-5) == pytest.approx(5.2985, abs=1e-3)
    assert not torch.equal(drawn[0].gram, drawn[1].gram)


def test_a_generator_makes_them_repeatable():
    model = Net()
    drawn = [
        moments_of(
            private_head_moments(
                model,
                batches(),
                max_norm=1.0,
                noise_multiplier=1.0,
                head="head",
                generator=torch.Generator().manual_seed(3),
            )
        )
        for _ in range(2)
    ]
    assert torch.equal(drawn[0].gram, drawn[1].gram)


class Sequences(nn.Module):
    """A label for each position."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.embed(x))


def test_an_example_with_many_positions_counts_once():
    """And positions without a label do not count."""
    x, y = torch.randint(0, 9, (6, 10)), torch.randint(0, CLASSES, (6, 10))
    y[:, 7:] = -1
    y[5] = -1
    accountant = Accountant()
    model = Sequences()
    found = moments_of(private_head_moments(model, [(x, y)], **NEARLY_NONE, accountant=accountant))
    counts = functional.one_hot(y[:5, :7], CLASSES).double().mean(1).mean(0)
    torch.testing.assert_close(found.cross[:, -1].double(), counts, rtol=1e-4, atol=1e-6)
    assert accountant.history == [(1e-9, 1.0, 1)]


@pytest.mark.parametrize("name", ["max_norm", "noise_multiplier"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), None, "1"])
def test_arguments_out_of_range_are_refused(name, value):
    options = {"max_norm": 1.0, "noise_multiplier": 1.0, "head": "head", name: value}
    with pytest.raises(ClientError, match=f"private_head_moments: {name} was"):
        private_head_moments(Net(), batches(), **options)


def test_what_else_is_refused():
    options = {"max_norm": 1.0, "noise_multiplier": 1.0}
    with pytest.raises(ClientError, match="this is no head stage"):
        private_head_moments(Net(), batches(), **options)
    with pytest.raises(ClientError, match="there is no example"):
        private_head_moments(Net(), [], **options, head="head")
    x = torch.randn(6, 1, 6, 6)
    with pytest.raises(ClientError, match="60 labels, but the head has 6 inputs"):
        private_head_moments(Net(), [(x, torch.zeros(60).long())], **options, head="head")
    drawn_anew = type("DPDataLoader", (list,), {})(batches())
    with pytest.raises(ClientError, match="gave to `make_private`"):
        private_head_moments(Net(), drawn_anew, **options, head="head")
    for delta in (0.0, 1.0, float("nan")):
        with pytest.raises(ClientError, match="delta was"):
            private_head_moments(Net(), batches(), **options, head="head").epsilon(delta)


# ---------------------------------------------------------------- Opacus


class GradSampleModule(nn.Module):
    """Opacus' wrapper, as far as it concerns us."""

    def __init__(self, module):
        super().__init__()
        self._module = module
        for parameter in module.parameters():
            parameter.grad_sample = None

    def forward(self, x):
        return self._module(x)


def test_a_model_in_opacus_wrapper_gives_private_moments():
    model = Net()
    found = private_head_moments(GradSampleModule(model), batches(), **NEARLY_NONE)
    plain = private_head_moments(model, batches(), **NEARLY_NONE)
    torch.testing.assert_close(moments_of(found).gram, moments_of(plain).gram)
    assert is_private(model.head)
    assert without_opacus(model) is model
    assert not is_private(Net())


def test_bare_moments_of_a_model_in_opacus_wrapper_are_refused():
    """Before the first batch has gone through: a train function may do as it likes with errors."""
    model = Net()
    with collecting("head") as hook:
        hook.attach(model)
        wrapped = GradSampleModule(model)
        with pytest.raises(ClientError, match=r"private_head_moments.*head=\"trained\""):
            wrapped(problem()[0])


def context():
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def test_what_was_spent_is_kept_from_call_to_call():
    client, accountant = context(), Accountant()
    restore_privacy(accountant, client)
    assert accountant.history == []
    keep_privacy(accountant, client)  # nothing: a record of empty lists could not be counted
    assert not client.state.config_records
    accountant.step(noise_multiplier=1.1, sample_rate=0.25)
    keep_privacy(accountant, client)
    later = Accountant()
    restore_privacy(later, client)
    later.step(noise_multiplier=2.0, sample_rate=1.0)
    keep_privacy(later, client)
    restore_privacy(accountant, client)
    assert accountant.history == [(1.1, 0.25, 1), (2.0, 1.0, 1)]


def test_with_opacus_itself():
    """Two private passes and the moments, in three calls, cost what one accountant says of all."""
    pytest.importorskip("opacus", reason="Opacus is not installed")
    from opacus import PrivacyEngine
    from opacus.accountants import RDPAccountant
    from torch.utils.data import DataLoader, TensorDataset

    client, data = context(), TensorDataset(*problem())
    for _ in range(2):
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, FEATURES), nn.Linear(FEATURES, CLASSES))
        engine = PrivacyEngine(accountant="rdp")
        restore_privacy(engine.accountant, client)
        private, optimizer, loader = engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data, 32),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        for x, y in loader:
            optimizer.zero_grad()
            functional.cross_entropy(private(x), y).backward()
            optimizer.step()
        keep_privacy(engine.accountant, client)
        alone = engine.accountant.history[-1]
    options = {"max_norm": 1.0, "noise_multiplier": 4.0, "head": "2"}
    engine = PrivacyEngine(accountant="rdp")
    restore_privacy(engine.accountant, client)
    with pytest.raises(ClientError, match="draws its batches anew"):
        private_head_moments(private, loader, **options)
    private_head_moments(private, DataLoader(data, 32), accountant=engine.accountant, **options)
    reference = RDPAccountant()
    reference.history = [(1.0, alone[1], 6), (4.0, 1.0, 1)]
    spent = engine.accountant.get_epsilon(1e-5)
    assert spent == pytest.approx(reference.get_epsilon(1e-5))

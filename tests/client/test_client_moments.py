"""Moments of the head's inputs, read by hooks from training loops that know nothing of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedma_flwr import head_moments
from fedma_flwr.client_moments import collecting
from fedma_flwr.protocol import CROSS_KEY, GRAM_KEY, ClientError, to_tensors

CLASSES, EXAMPLES, FEATURES = 5, 96, 12


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(3 * 16, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        return self.head(
            functional.dropout(torch.relu(self.hidden(self.drop(x))), 0.5, self.training)
        )


def problem():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(EXAMPLES, 1, 6, 6, generator=generator)
    return x, torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)


def expected(model, x, targets):
    """The moments of an average example, summed without any hook."""
    model.eval()
    seen = []
    handle = model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    phi = torch.cat([seen[0], torch.ones(len(x), 1)], 1).double()
    gram = phi[:, :-1].T @ phi[:, :-1] / len(x)
    return gram[tuple(torch.triu_indices(FEATURES, FEATURES))], targets.double().T @ phi / len(x)


def collect(train, model=None, path="head"):
    model = Net() if model is None else model
    with collecting(path) as hook:
        hook.attach(model)
        train(model)
        return model, hook.moments()


def close(moments, gram, cross, rtol=1e-5):
    torch.testing.assert_close(moments[GRAM_KEY].double(), gram, rtol=rtol, atol=rtol)
    torch.testing.assert_close(moments[CROSS_KEY].double(), cross, rtol=rtol, atol=rtol)


def epochs(loss, *, optimizer=torch.optim.SGD, epochs=1, batch=32, accumulate=1, clip=False, **kw):
    """An ordinary training loop."""

    def train(model):
        x, y = problem()
        model.train()
        opt = optimizer(model.parameters(), **{"lr": 0.1, **kw})
        for step, index in enumerate(
            i for _ in range(epochs) for i in torch.randperm(len(x)).split(batch)
        ):
            loss(model(x[index]), y[index]).backward()
            if (step + 1) % accumulate == 0:
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
                opt.zero_grad()

    return train


def smoothed(z, y):
    return functional.cross_entropy(z, y, label_smoothing=0.1)


def weighted(z, y):
    return functional.cross_entropy(z, y, weight=torch.arange(1.0, CLASSES + 1))


def summed(z, y):
    return functional.cross_entropy(z, y, reduction="sum")


def nll(z, y):
    return functional.nll_loss(functional.log_softmax(z, 1), y)


def scaled(z, y):
    return functional.cross_entropy(z, y) * 65536


@pytest.mark.parametrize(
    "train",
    [
        epochs(functional.cross_entropy, momentum=0.9),
        epochs(functional.cross_entropy, epochs=3),
        epochs(functional.cross_entropy, optimizer=torch.optim.AdamW, accumulate=3, clip=True),
        epochs(functional.cross_entropy, batch=20),  # the last batch is smaller
        epochs(smoothed),
        epochs(weighted),
        epochs(summed),
        epochs(nll),
        epochs(scaled),
    ],
)
def test_labels_are_read_from_the_gradient_of_a_cross_entropy(train):
    x, y = problem()
    model, moments = collect(train)

    close(moments, *expected(model, x, functional.one_hot(y, CLASSES)))


def test_nothing_but_the_head_has_changed():
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    collect(epochs(functional.cross_entropy, weight_decay=0.1), model)

    after = model.state_dict()
    assert [n for n in before if not torch.equal(before[n], after[n])] == [
        "head.weight",
        "head.bias",
    ]


def test_a_model_can_be_used_again():
    model, _ = collect(epochs(functional.cross_entropy))

    model.train()
    model(problem()[0])

    assert model.norm.num_batches_tracked == 1
    assert not model.head._forward_pre_hooks


def test_soft_labels_are_read_where_a_class_has_none():
    x, y = problem()
    soft = 0.7 * functional.one_hot(y, CLASSES) + 0.3 * functional.one_hot(
        (y + 1) % CLASSES, CLASSES
    )
    model, moments = collect(lambda m: functional.cross_entropy(m(x), soft).backward())

    close(moments, *expected(model, x, soft))


def test_half_precision_gives_whole_labels():
    x, y = problem()

    def train(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(model(x), y)
        (loss * 1024).backward()

    model, moments = collect(train)
    gram, cross = expected(model, x, functional.one_hot(y, CLASSES))
    close(moments, gram, cross, rtol=3e-2)  # features are bfloat16
    assert torch.equal(moments[CROSS_KEY][:, -1], cross[:, -1].float())


def test_padded_positions_do_not_count():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, FEATURES)
            self.head = nn.Linear(FEATURES, CLASSES)

        def forward(self, x):
            return self.head(self.embed(x))

    x = torch.arange(12).reshape(2, 6) % 7
    y = torch.tensor([[0, 1, 2, 3, -100, -100], [4, 4, 4, -100, -100, -100]])
    model = Tagger()

    def train(model):
        functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()

    _, moments = collect(train, model)

    assert moments[CROSS_KEY][:, -1].mul(len(x)).round().tolist() == [1, 1, 1, 1, 3]
    with collecting("head"):
        given = to_tensors(head_moments(model, [(x, y)]))
    close(given, moments[GRAM_KEY].double(), moments[CROSS_KEY].double())


def test_a_convolution_of_size_1_is_a_head():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))
    x, _ = problem()
    y = torch.randint(0, CLASSES, (EXAMPLES, 4, 4))

    _, moments = collect(lambda m: functional.cross_entropy(m(x), y).backward(), model, path="2")

    phi = model[:2](x).detach().movedim(1, -1).flatten(0, -2).double()
    targets = functional.one_hot(y, CLASSES).flatten(0, -2).double()
    cross = targets.T @ torch.cat([phi, torch.ones(len(phi), 1)], 1) / len(x)
    gram = (phi.T @ phi / len(x))[tuple(torch.triu_indices(4, 4))]
    close(moments, gram, cross)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: functional.l1_loss(z, functional.one_hot(y, CLASSES).float() + 1),
        lambda z, y: functional.poisson_nll_loss(z, functional.one_hot(y, CLASSES).float()),
    ],
)
def test_a_loss_that_tells_no_targets_is_named(loss):
    with pytest.raises(ClientError, match=r"the loss is neither.*head_moments.*head=\"trained\""):
        collect(epochs(loss))


@pytest.mark.parametrize("train", [lambda m: None, lambda m: m(problem()[0]).sum().item()])
def test_a_head_stage_without_examples_is_named(train):
    with pytest.raises(ClientError, match="has seen no example"):
        collect(train)


def test_head_moments_gives_what_the_hooks_read():
    x, y = problem()
    model, moments = collect(epochs(functional.cross_entropy))

    for batches in ([(x, y)], [(x[:50], y[:50]), ((x[50:],), y[50:])], [({"x": x}, y)]):
        given = to_tensors(head_moments(model, batches, head="head"))
        close(given, moments[GRAM_KEY].double(), moments[CROSS_KEY].double())
    soft = to_tensors(
        head_moments(model, [(x, functional.one_hot(y, CLASSES).float())], head="head")
    )
    close(soft, moments[GRAM_KEY].double(), moments[CROSS_KEY].double())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_head_moments_sees_through_wrappers(wrap):
    x, y = problem()
    model = Net()
    plain = to_tensors(head_moments(model, [(x, y)], head="head"))
    wrapped = to_tensors(head_moments(wrap(model), [(x, y)], head="head"))

    assert all(torch.equal(plain[name], wrapped[name]) for name in plain)


def test_head_moments_refuses_what_it_cannot_use():
    x, y = problem()
    with pytest.raises(ClientError, match="this is no head stage"):
        head_moments(Net(), [(x, y)])
    with pytest.raises(ClientError, match=r"labels reach 9, but the head has 5 outputs"):
        head_moments(Net(), [(x, y * 0 + 9)], head="head")
    with pytest.raises(ClientError, match="has no layer 'fc'"):
        head_moments(Net(), [(x, y)], head="fc")
    with pytest.raises(ClientError, match=r"is Conv2d.*; only a linear layer"):
        head_moments(Net(), [(x, y)], head="conv")

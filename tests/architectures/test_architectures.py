"""FedMA from end to end, on the kinds of networks that its structure side understands."""

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn import functional

from fedma_flwr import Stage, fedma_mod, load_model
from fedma_flwr.matching import BBPMAP
from fedma_flwr.protocol import to_tensors
from fedma_flwr.testing import InProcessGrid
from tests.architectures.networks import CASES, spec_of
from tests.toy import LayerwiseFedMA

EXAMPLES = (40, 60, 80, 100)  # a client; unequal, so that weighted and plain means differ
SHARES = torch.tensor(EXAMPLES, dtype=torch.float64) / sum(EXAMPLES)
TEST_EXAMPLES = 300
LEARNING_RATE = 0.02


def initial(case):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return case.make()


def data(case, client):
    return case.draw(EXAMPLES[client], torch.Generator().manual_seed(client))


def make_app(case, epochs, seen):
    """A ClientApp whose training notes (stage, message's arrays, trained arrays)."""
    app = ClientApp(mods=[fedma_mod])

    @app.train()
    def train(message, context):
        client, stage = context.node_config["partition-id"], Stage.from_message(message)
        x, y = data(case, client)
        torch.manual_seed(client)
        model = load_model(case.make(), message)
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE)
        generator = torch.Generator().manual_seed(10 * stage.round + stage.index)
        for _ in range(epochs[stage.name]):
            for batch in torch.randperm(len(y), generator=generator).split(20):
                optimizer.zero_grad()
                functional.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
        arrays = to_tensors(message.content.get("arrays", ArrayRecord()))
        trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        seen.append((stage, arrays, trained))
        metrics = MetricRecord({"num-examples": len(y)})
        records = {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
        return Message(RecordDict(records), reply_to=message)

    return app


def run(name, *, rounds, epochs, **options):
    """Run FedMA; the result, the strategy, what was seen, accuracy before and after each round."""
    case, seen, accuracies = CASES[name], [], []
    x, y = case.draw(TEST_EXAMPLES, torch.Generator().manual_seed(99))

    def evaluate(_, arrays):
        model = load_model(case.make(), arrays).eval()
        with torch.no_grad():
            accuracies.append(float((model(x).argmax(1) == y).float().mean()))

    strategy = LayerwiseFedMA(spec=spec_of(name), fraction_evaluate=0.0, **options)
    result = strategy.start(
        InProcessGrid(make_app(case, epochs, seen), len(EXAMPLES)),
        ArrayRecord(initial(case).state_dict()),
        num_rounds=rounds,
        evaluate_fn=evaluate,
    )
    assert not [record.dropped for record in strategy.history if record.dropped]
    return result, strategy, seen, accuracies


@pytest.mark.parametrize("name", CASES)
def test_each_architecture_learns_from_own_initialisations(name):
    case = CASES[name]
    epochs = {"local": 8, "retrain": 2, "head": 3}
    _, strategy, _, accuracies = run(name, rounds=case.rounds, epochs=epochs, initialisation="own")
    assert accuracies[-1] > accuracies[0] + 0.2
    assert accuracies[-1] > case.accuracy
    matched = [record.identity for record in strategy.history if record.identity is not None]
    assert min(matched) < 1.0  # there was something to match


@pytest.mark.parametrize("options", [{"groups_per_stage": "all"}, {"one_shot": True}], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_each_architecture_grows_in_bundled_stages_and_in_one_shot(name, options):
    case, eager = CASES[name], BBPMAP.reference(gamma=50.0)
    result, strategy, _, _ = run(
        name,
        rounds=1,
        epochs={"local": 1, "retrain": 1, "head": 1},
        initialisation="own",
        matcher=eager,
        **options,
    )
    groups, widths = strategy.settings.spec.groups, strategy.history.exchanges[-1].widths
    for group, entry in groups.items():
        assert entry.size <= widths[group] <= entry.size * (2 if entry.growable else 1)
    assert sum(widths.values()) > sum(entry.size for entry in groups.values())
    x, _ = data(case, 0)
    assert load_model(case.make(), result.arrays).eval()(x).isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_tiny_gamma_and_a_common_start_give_the_means_stage_by_stage(name):
    tiny = BBPMAP.reference(gamma=1e-9, output="mean")
    epochs = {"local": 1, "retrain": 1, "head": 1}
    result, strategy, seen, _ = run(name, rounds=1, epochs=epochs, matcher=tiny)
    spec, plan = strategy.settings.spec, strategy.settings.plan
    shares = [record.identity for record in strategy.history if record.groups]
    assert shares == [1.0] * sum(bool(stage.groups) for stage in plan.stages)
    for planned in plan.stages:
        trained = [state for stage, _, state in seen if stage.index == planned.index]
        sent = [arrays for stage, arrays, _ in seen if stage.index == planned.index + 1]
        assert len(trained) == len(EXAMPLES)
        for tensor in planned.settles:
            wanted = mean_by_rule(spec, planned, tensor, trained)
            for arrays in sent or [to_tensors(result.arrays)]:
                got = arrays[tensor].double()
                assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6), tensor


def mean_by_rule(spec, planned, name, trained):
    """Units matched in this stage: the plain mean. All else: weighted by examples.

    That is later producers of a residual stream, statistics, and a head without class counts.
    """
    matched_now = spec.tensor_groups(name) & set(planned.groups)
    shares = torch.full_like(SHARES, 1 / len(SHARES)) if matched_now else SHARES

    def mean(tensors):
        return sum(share * tensor.double() for share, tensor in zip(shares, tensors, strict=True))

    values = [state[name] for state in trained]
    if name.endswith("running_var"):  # pooled: the law of total variance
        means = [state[name.replace("_var", "_mean")].double() for state in trained]
        moments = [value + m**2 for value, m in zip(values, means, strict=True)]
        return mean(moments) - mean(means) ** 2
    return mean(values) if values[0].is_floating_point() else mean(values).round()

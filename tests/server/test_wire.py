"""Half precision on the wire: what is rounded, what is not, and that both sides agree."""

import numpy as np
import pytest
import torch
from flwr.app import Array
from hypothesis import given, settings
from hypothesis import strategies as st

from fedma_flwr import fedma_mod, load_model, wire
from fedma_flwr.protocol import Instruction
from fedma_flwr.testing import InProcessGrid
from tests.server.test_adversary import quiet
from tests.toy import SPEC, LayerwiseFedMA, Net, fit, initial_arrays, make_app, reply

HALVES = ["float16", "bfloat16"]


@pytest.mark.parametrize(
    ("wire_dtype", "values", "expected", "words"),
    [
        # 1/3 has 11 significant bits in float16 (0x3555), 8 in bfloat16 (0x3eab)
        ("float16", [1.0, 1 / 3], [1.0, 0.333251953125], [0x3C00, 0x3555]),
        ("bfloat16", [1.0, 1 / 3], [1.0, 0.333984375], [0x3F80, 0x3EAB]),
        ("float16", [1e6, -1e6], [65504.0, -65504.0], [0x7BFF, 0xFBFF]),
        ("bfloat16", [3.4e38, 2.0**-130], [3.3895313892515355e38, 2.0**-130], [0x7F7F, 0x0008]),
    ],
)
def test_known_numbers(wire_dtype, values, expected, words):
    array = wire.to_array(torch.tensor([values]), wire_dtype)
    assert (array.dtype, array.shape, array.stype) == ("float32", (1, 2), f"fedma.{wire_dtype}")
    assert array.data == np.array(words, "<u2").tobytes()
    assert wire.to_tensor(array).tolist() == [expected]
    assert wire.to_tensor(array).dtype == torch.float32


@pytest.mark.parametrize("wire_dtype", HALVES)
@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1 / 3, 1e30]),  # one axis
        torch.tensor(1 / 3),
        torch.tensor([[1, 2**40]]),
        torch.tensor([[1 / 3]]).half(),
    ],
)
def test_what_stays_as_it_is(wire_dtype, tensor):
    array = wire.to_array(tensor, wire_dtype)
    assert array.stype == "numpy.ndarray"
    assert torch.equal(wire.to_tensor(array), tensor)
    assert wire.rounded({"x": tensor}, wire_dtype)["x"] is tensor


@settings(max_examples=100, deadline=None)
@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
    wire_dtype=st.sampled_from(HALVES),
    double=st.booleans(),
)
def test_rounding_once_is_rounding_for_good(bits, wire_dtype, double):
    """What arrives is what `rounded` says, and crosses unchanged from then on."""
    values = torch.from_numpy(np.array(bits, np.uint32).view(np.float32)).reshape(-1, 1)
    values = torch.nan_to_num(values).to(torch.float64 if double else torch.float32)
    once = wire.to_tensor(wire.to_array(values, wire_dtype))
    assert once.dtype == values.dtype
    assert torch.equal(once, wire.rounded({"x": values}, wire_dtype)["x"])
    assert torch.equal(wire.to_tensor(wire.to_array(once, wire_dtype)), once)
    assert bool(torch.isfinite(once).all())
    if wire_dtype == "bfloat16":  # 8 significant bits
        normal = (values.abs() >= 2.0**-126) & (values.abs() <= 3.38e38)
        assert bool(((once - values).abs() <= values.abs() / 256)[normal].all())


def test_nan_is_not_hidden():
    array = wire.to_array(torch.tensor([[float("nan")]]), "bfloat16")
    assert bool(wire.to_tensor(array).isnan().all())


@pytest.mark.parametrize("wire_dtype", HALVES)
def test_an_instruction_tells_the_precision(wire_dtype):
    record = Instruction("full", wire_dtype=wire_dtype).to_record()
    assert Instruction.from_record(record).wire_dtype == wire_dtype
    assert "wire-dtype" not in Instruction("full").to_record()
    assert Instruction.from_record(Instruction("full").to_record()).wire_dtype == "float32"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"wire_dtype was 'int8'; it must be one of.*bfloat16"):
        LayerwiseFedMA(spec=SPEC, wire_dtype="int8")


# ---------------------------------------------------------------- whole runs


def run(strategy, app=None, rounds=2, **grid_options):
    grid = InProcessGrid(app or make_app(), 4, **grid_options)
    with quiet():
        return strategy.start(grid, initial_arrays(), num_rounds=rounds), grid


@pytest.mark.parametrize("wire_dtype", HALVES)
def test_the_result_is_what_the_clients_hold(wire_dtype):
    result, grid = run(LayerwiseFedMA(spec=SPEC, wire_dtype=wire_dtype, fraction_evaluate=0.0))
    for name, array in result.arrays.items():
        tensor = torch.from_numpy(array.numpy().copy())
        assert torch.equal(wire.rounded({name: tensor}, wire_dtype)[name], tensor)
        if not name.startswith("c."):  # the averaged head travels with the next round
            for context in grid.contexts.values():
                kept = context.state["fedma.arrays"][name]
                assert kept.numpy().tobytes() == array.numpy().tobytes()


@pytest.mark.parametrize("wire_dtype", HALVES)
def test_one_app_serves_all_precisions_and_models_stay_close(wire_dtype):
    app = make_app()
    plain, _ = run(LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0), app, rounds=1)
    halved, _ = run(
        LayerwiseFedMA(spec=SPEC, wire_dtype=wire_dtype, fraction_evaluate=0.0), app, rounds=1
    )
    for name in plain.arrays:
        np.testing.assert_allclose(
            halved.arrays[name].numpy(), plain.arrays[name].numpy(), atol=0.03
        )


def test_bytes_are_those_of_the_wire():
    """Wide weights cost half; what a message costs beside them stays."""

    def exchanged(**options):
        strategy = LayerwiseFedMA(spec=SPEC, fraction_evaluate=0.0, **options)
        run(strategy)
        return [(r.bytes_down, r.bytes_up) for r in strategy.history if r.name != "hello"]

    full, half = exchanged(), exchanged(wire_dtype="bfloat16")
    # Stage 0 brings a.weight (12 x 2) and a.bias up from each of 4 clients. Two bytes a weight are
    # saved, and numpy's header of 128; the serialisation type's name is one letter longer.
    header, letter = 128, len("fedma.bfloat16") - len("numpy.ndarray")
    small = 4 * 8  # lengths of nested records shrink by a byte or so
    saved = full[0][1] - half[0][1]
    assert abs(saved - 4 * (24 * 2 + header - letter)) <= small
    assert all(h[0] < f[0] and h[1] < f[1] for f, h in zip(full, half, strict=True))


@pytest.mark.parametrize("wire_dtype", HALVES)
def test_a_client_that_lost_its_state_changes_nothing(wire_dtype):
    """A full-state message brings bit for bit what the client had."""

    def forget(message, context):
        if message.content["fedma"]["kind"] == "update" and message.content["fedma"]["stage"] == 0:
            context.state.clear()

    options = {"spec": SPEC, "wire_dtype": wire_dtype, "fraction_evaluate": 0.0}
    kept, _ = run(LayerwiseFedMA(**options), rounds=3)
    lost, _ = run(LayerwiseFedMA(**options), rounds=3, intercept=forget)
    assert all(kept.arrays[name].data == lost.arrays[name].data for name in kept.arrays)


@pytest.mark.parametrize("wire_dtype", HALVES)
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, wire_dtype):
    options = {"spec": SPEC, "wire_dtype": wire_dtype, "fraction_evaluate": 0.0}
    whole, _ = run(LayerwiseFedMA(**options), rounds=3)
    run(LayerwiseFedMA(**options, checkpoint_dir=tmp_path), rounds=2)
    resumed, _ = run(LayerwiseFedMA(**options, checkpoint_dir=tmp_path, resume=True), rounds=3)
    assert all(whole.arrays[name].data == resumed.arrays[name].data for name in whole.arrays)


def test_weights_beyond_float16_saturate_and_the_run_goes_on():
    def train(message, context, client):
        model = load_model(Net(), message)
        fit(model, client)
        with torch.no_grad():
            if model.a.weight.requires_grad:
                model.a.weight[:] = 1e6
        return reply(message, model, client)

    strategy = LayerwiseFedMA(
        spec=SPEC, wire_dtype="float16", max_norm_ratio=float("inf"), fraction_evaluate=0.0
    )
    result, _ = run(strategy, make_app(train), rounds=1)
    assert (result.arrays["a.weight"].numpy() == 65504.0).all()


# ---------------------------------------------------------------- hostile arrays


def set_stype(array):
    return Array(array.dtype, array.shape, "numpy.ndarray", array.data)


HOSTILE = {
    "short": lambda a: Array(a.dtype, a.shape, a.stype, a.data[:-2]),
    "long": lambda a: Array(a.dtype, a.shape, a.stype, a.data + b"\0\0"),
    "nan": lambda a: Array(a.dtype, a.shape, a.stype, b"\xff" * len(a.data)),
    "as numpy": set_stype,
    "plain": lambda a: Array(np.zeros(a.shape, np.float32)),
    "other half": lambda a: Array(a.dtype, a.shape, "fedma.float16", a.data),
    "unknown": lambda a: Array(a.dtype, a.shape, "fedma.int8", a.data),
    "dtype": lambda a: Array("bfloat16", a.shape, a.stype, a.data),
    "absurd": lambda a: Array(a.dtype, (2**31, 2**31), a.stype, a.data),
    "negative": lambda a: Array(a.dtype, (-12, -2), a.stype, a.data),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_compressed_array_that_is_not_what_was_asked_for_is_refused(name):
    def lie(message, context, call_next):
        answer = call_next(message, context)
        if context.node_config["partition-id"] == 3 and "arrays" in answer.content:
            arrays = answer.content["arrays"]
            if "a.weight" in arrays:
                arrays["a.weight"] = HOSTILE[name](arrays["a.weight"])
        return answer

    strategy = LayerwiseFedMA(spec=SPEC, wire_dtype="bfloat16", fraction_evaluate=0.0)
    result, _ = run(strategy, make_app(mods=(lie, fedma_mod)), rounds=1)
    first = next(record for record in strategy.history if record.name == "local")
    assert first.dropped.keys() == {"3"}
    assert all(np.isfinite(array.numpy()).all() for array in result.arrays.values())

"""`PermutationSpec`: hand-computed operations, properties, and errors that name the tensor."""

import copy
import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedma_flwr.structure import PermutationSpec, SpecError, UnitGroup

MLP = PermutationSpec(
    groups={"hidden": 3},
    axes={"a.weight": "hidden, 2", "a.bias": "hidden", "b.weight": "1, hidden"},
)
# A convolution with batch norm, flattened 2x1 maps, a fused gate axis, a product and an embedding.
RICH = PermutationSpec(
    groups={"conv": 4, "h": UnitGroup(3, growable=False, reason="a view"), "heads": 2},
    axes={
        "conv.weight": "conv, 1, 2, 2",
        "bn.running_mean": "conv",
        "bn.running_var": "conv",
        "bn.num_batches_tracked": "",
        "gates.weight": "h + h, conv x 2",
        "qkv.weight": "heads x h + heads x 2, h",
        "embedding.weight": "5, h",
        "head.weight": "2, heads x 2",
    },
    outputs={"embedding.weight": 1},
    statistics=("bn.running_mean", "bn.running_var"),
    head=("head.weight",),
)


def mlp_state():
    return {
        "a.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
        "a.bias": torch.tensor([7.0, 8.0, 9.0]),
        "b.weight": torch.tensor([[10.0, 11.0, 12.0]]),
    }


def random_state(spec, widths=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = spec.shapes(widths)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


orders = st.fixed_dictionaries({g: st.permutations(range(n)) for g, n in RICH.sizes.items()}).map(
    lambda groups: {name: torch.tensor(order) for name, order in groups.items()}
)


def test_permute_by_hand():
    new = MLP.permute(mlp_state(), {"hidden": torch.tensor([2, 0, 1])})
    assert new["a.weight"].tolist() == [[5, 6], [1, 2], [3, 4]]
    assert new["a.bias"].tolist() == [9, 7, 8]
    assert new["b.weight"].tolist() == [[12, 10, 11]]


def test_expand_by_hand():
    assigned = {"hidden": torch.tensor([3, 0, 1])}
    new = MLP.expand(mlp_state(), assigned, {"hidden": 4})
    assert new["a.bias"].tolist() == [8, 9, 0, 7]
    assert new["b.weight"].tolist() == [[11, 12, 0, 10]]


def test_select_by_hand():
    new = MLP.select(mlp_state(), {"hidden": torch.tensor([1])})
    assert new["a.weight"].tolist() == [[3, 4]]
    assert new["b.weight"].tolist() == [[11]]


def test_running_variances_are_padded_with_one():
    state = random_state(RICH)
    new = RICH.expand(state, {"conv": torch.arange(4)}, {"conv": 6})
    assert new["bn.running_var"][4:].tolist() == [1, 1]
    assert new["bn.running_mean"][4:].tolist() == [0, 0]


@given(orders)
def test_permute_then_inverse_is_the_original(permutations):
    state = random_state(RICH)
    inverse = {group: order.argsort() for group, order in permutations.items()}
    assert equal(RICH.permute(RICH.permute(state, permutations), inverse), state)


@given(st.fixed_dictionaries({g: st.integers(0, 3) for g in RICH.groups}), st.data())
def test_expand_then_select_is_the_original(growth, data):
    widths = {group: size + growth[group] for group, size in RICH.sizes.items()}
    assigned = {
        group: torch.tensor(data.draw(st.permutations(range(widths[group])))[:size])
        for group, size in RICH.sizes.items()
    }
    state = random_state(RICH)
    wide = RICH.expand(state, assigned, widths)
    assert {name: tuple(tensor.shape) for name, tensor in wide.items()} == RICH.shapes(widths)
    assert equal(RICH.select(wide, assigned), state)


@given(st.fixed_dictionaries({g: st.integers(1, 6) for g in RICH.groups}))
def test_widths_follow_from_shapes(widths):
    assert RICH.widths(random_state(RICH, widths)) == widths


@pytest.mark.parametrize("spec", [MLP, RICH])
def test_json_pickle_and_copy_round_trips(spec):
    for twin in (
        PermutationSpec.from_json(spec.to_json()),
        pickle.loads(pickle.dumps(spec)),
        copy.deepcopy(spec),
    ):
        assert twin == spec
        assert list(twin.groups) == list(spec.groups)


def test_json_by_hand():
    assert MLP.to_json() == (
        '{"groups":{"hidden":3},'
        '"axes":{"a.weight":"hidden, 2","a.bias":"hidden","b.weight":"1, hidden"}}'
    )
    full = PermutationSpec(
        groups={"g": UnitGroup(2, growable=False, reason="so"), "h": 3},
        axes={"a": "5, g x 2", "m": "g", "v": "g", "b": "h + 1, g", "n": ""},
        outputs={"a": 1}, statistics=("m", "v"), head=("b",), pinned={"a[0]": "why"},
        variances={"v": "m"},
    )  # fmt: skip
    assert full.to_json() == (
        '{"groups":{"g":[2,"so"],"h":3},'
        '"axes":{"a":"5, g x 2","m":"g","v":"g","b":"h + 1, g","n":""},"outputs":{"a":1},'
        '"statistics":["m","v"],"head":["b"],"pinned":{"a[0]":"why"},"variances":{"v":"m"}}'
    )
    assert PermutationSpec.from_json(full.to_json()) == full


def test_the_table_by_hand():
    spec = PermutationSpec(
        groups={"g": UnitGroup(2, growable=False, reason="so"), "h": 3},
        axes={"a": "5, g x 2", "m": "g", "b": "h + 1, g", "n": "2, h"},
        outputs={"a": 1},
        pinned={"a[0]": "why"},
    )
    assert str(spec).splitlines() == [
        "group   units  grows  made by -> used by",
        "g       2      no     a, m -> b",
        "h       3      yes    b -> n",
        "(head)                n",
        "",
        "100% of the model's entries are in tensors with groups.",
        "",
        "matched at fixed width:",
        "g  so",
        "",
        "a  [5, g x 2]",
        "m  [g]",
        "b  [h + 1, g]",
        "n  [2, h]",
        "",
        "pinned:",
        "a[0]  why",
    ]
    assert "pinned" not in str(MLP)
    assert "fixed" not in str(MLP)


def test_the_default_head_has_fixed_outputs():
    assert MLP.head == ("b.weight",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": torch.zeros(4)}, "'a.*' has shape"),
        ({"a.weight": torch.zeros(3, 5)}, "'a.weight' has shape"),
        ({"b.weight": torch.zeros(3)}, "'b.weight' has shape"),
    ],
)
def test_a_wrong_shape_names_the_tensor(change, message):
    with pytest.raises(SpecError, match=message):
        MLP.check({**mlp_state(), **change})


def test_missing_and_additional_tensors_are_named():
    state = mlp_state()
    with pytest.raises(SpecError, match=r"c\.weight"):
        MLP.check({**state, "c.weight": torch.zeros(1)})
    del state["a.bias"]
    with pytest.raises(SpecError, match=r"a\.bias"):
        MLP.check(state)


def test_widths_that_contradict_the_known_ones_are_refused():
    with pytest.raises(SpecError, match=r"'a\.weight'"):
        MLP.check(mlp_state(), {"hidden": 4})


@pytest.mark.parametrize(
    "order", [[0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1], [[0, 1, 2]], [0, 1, 2, 2]]
)
def test_no_permutation_is_refused(order):
    with pytest.raises(SpecError, match="hidden"):
        MLP.permute(mlp_state(), {"hidden": torch.tensor(order)})


def test_unknown_groups_are_refused():
    for operation in (MLP.permute, MLP.select):
        with pytest.raises(SpecError, match="'conv'"):
            operation(mlp_state(), {"conv": torch.arange(3)})


def test_assignments_of_another_length_are_refused():
    with pytest.raises(SpecError, match="assignments\\['hidden'\\]"):
        MLP.expand(mlp_state(), {"hidden": torch.arange(2)}, {"hidden": 4})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"groups": {"g": 0}, "axes": {"w": "g"}}, "size 0"),
        ({"groups": {}, "axes": {"w": "g"}}, "'g'"),
        ({"groups": {"g": 1}, "axes": {"w": "1"}}, "'g'"),
        ({"groups": {}, "axes": {"w": "1"}, "outputs": {"w": 1}}, "no such axis"),
        ({"groups": {}, "axes": {"w": "1"}, "head": ("v",)}, "'v'"),
        ({"groups": {}, "axes": {"w": "1"}, "statistics": ("v",)}, "'v'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(SpecError, match=message):
        PermutationSpec(**parts)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"groups": {"g": "x"}, "axes": {}}', "null"])
def test_json_that_is_no_spec_is_refused(text):
    with pytest.raises(SpecError):
        PermutationSpec.from_json(text)


AVERAGES = {"w": "h, 2", "n.mu": "h", "n.sigma": "h", "m.running_mean": "h", "m.running_var": "h"}


def averages(**parts):
    return PermutationSpec({"h": 2}, AVERAGES, statistics=tuple(AVERAGES)[1:], **parts)


def test_variances_are_by_default_those_that_torch_names_so():
    assert averages().variances == {"m.running_var": "m.running_mean"}
    assert MLP.variances == {}
    # A mean that is no statistic, or of other units, is not that of the variance.
    assert PermutationSpec({"h": 2}, AVERAGES, statistics=["m.running_var"]).variances == {}
    other = {**AVERAGES, "m.running_mean": "2"}
    assert PermutationSpec({"h": 2}, other, statistics=tuple(AVERAGES)[1:]).variances == {}


def test_variances_that_a_spec_names_are_padded_with_one_whatever_their_names():
    spec = averages(variances={"n.sigma": "n.mu"})
    assert [spec.padding(name) for name in AVERAGES] == [0, 0, 1, 0, 0]
    wide = spec.expand({"n.sigma": torch.tensor([3.0, 4.0])}, {"h": torch.tensor([2, 0])}, {"h": 3})
    assert wide["n.sigma"].tolist() == [4, 1, 3]


@pytest.mark.parametrize("variances", [{"n.sigma": "n.mu"}, {}])
def test_variances_other_than_the_default_are_in_the_json(variances):
    spec = averages(variances=variances)
    assert json.loads(spec.to_json())["variances"] == variances
    twin = PermutationSpec.from_json(spec.to_json())
    assert twin == spec != averages()
    assert pickle.loads(pickle.dumps(spec)).variances == variances


def test_default_variances_are_not_in_the_json():
    text = averages().to_json()
    assert "variances" not in text
    assert averages(variances={"m.running_var": "m.running_mean"}).to_json() == text
    assert PermutationSpec.from_json(text) == averages()


@pytest.mark.parametrize(
    ("variances", "message"),
    [
        ({"n.sigma": "w"}, r"no `statistics`.*'w'"),
        ({"v": "n.mu"}, r"no `statistics`.*'v'"),
    ],
)
def test_variances_that_are_no_statistics_are_refused(variances, message):
    with pytest.raises(SpecError, match=message):
        averages(variances=variances)


def test_a_variance_and_a_mean_of_other_units_are_refused():
    axes = {"w": "h, 2", "mu": "2", "sigma": "h"}
    with pytest.raises(SpecError, match=r"variances\['sigma'\] is 'mu'.*: h and 2"):
        PermutationSpec({"h": 2}, axes, statistics=["mu", "sigma"], variances={"sigma": "mu"})

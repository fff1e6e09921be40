"""The Shakespeare task: reading plays, LEAF's windows, the split by position, and the model."""

import datasets
import flwr_datasets
import pytest
import torch

from fedma_flwr.client_app import app
from fedma_flwr.server_app import run
from fedma_flwr.structure import derive_spec
from fedma_flwr.tasks import get_task
from fedma_flwr.tasks.plays import embedded_roles, leaf_roles, read_play
from fedma_flwr.tasks.shakespeare import ALPHABET, encode, load, windows
from fedma_flwr.testing import InProcessGrid
from tests.tasks.configs import TINY, config

TASK = get_task("shakespeare")
OPTIONS = {"num_roles": 3, "min_characters": 10_000, "test_share": 0.2, "stride": 1}
PLAY = """# A Play

_Enter ROMEO_

**ROMEO**
He jests at scars _Aside_ that never
felt a wound.\\--Soft!
_JULIET appears
above_
What light

## SCENE II

noise without

**JULIET**
[Aside]_
Ay me!

*Exit*

**ROMEO**
She speaks.
"""


def decoded(codes):
    return "".join(ALPHABET[code] for code in codes.tolist())


def test_a_play_is_read_without_its_directions():
    speeches = [(role, " ".join(said.split())) for role, said in read_play(PLAY)]

    assert speeches == [
        ("ROMEO", "He jests at scars that never felt a wound.--Soft! What light"),
        ("JULIET", "Ay me!"),
        ("ROMEO", "She speaks."),
    ]


def test_the_embedded_plays():
    roles = embedded_roles()

    assert len(roles) == 1426
    assert sum(len(text) >= 10_000 for text in roles.values()) == 137
    assert roles["hamlet/HAMLET"].startswith("A little more than kin, and less than kind. Not so,")
    everything = "".join(roles.values())
    assert sum(character not in ALPHABET for character in everything) < 1e-4 * len(everything)


def test_the_alphabet_is_leafs():
    assert len(ALPHABET) == len(set(ALPHABET)) == TASK.num_classes == 80
    assert (ALPHABET[0], ALPHABET[1], ALPHABET[79]) == ("\n", " ", "}")


def test_characters_outside_the_alphabet_are_read_as_a_space_and_counted():
    codes, unknown = encode("Ay—me$!")

    assert decoded(codes) == "Ay me !"
    assert unknown == 2


def test_windows_are_80_characters_and_the_next():
    codes = torch.arange(90, dtype=torch.uint8)

    assert windows(codes, 1)[:, 0].tolist() == list(range(10))
    assert windows(codes, 1)[3].tolist() == list(range(3, 84))
    assert windows(codes, 4)[:, 0].tolist() == [0, 4, 8]


def test_a_role_is_split_by_position():
    data = load("embedded", "", **OPTIONS)
    roles = list(embedded_roles().values())
    test_counts = []
    end = 0
    for owner in range(3):
        inputs, following = (tensor[data.owners == owner] for tensor in data.train.tensors)
        text = decoded(inputs[0]) + decoded(following)
        (source,) = [said for said in roles if encoded_like(said, text)]
        cut = round(0.8 * len(source))
        assert len(text) == cut
        begin, end = end, end + len(source) - cut - 80
        test_inputs, test_following = (tensor[begin:end] for tensor in data.test.tensors)
        assert decoded(test_inputs[0]) + decoded(test_following) == as_encoded(source)[cut:]
        test_counts.append(end - begin)
    assert sum(test_counts) == len(data.test)


def as_encoded(text):
    return decoded(encode(text)[0])


def encoded_like(said, text):
    return len(said) >= len(text) and as_encoded(said[: len(text)]) == text


def test_which_roles_take_part_is_fixed_and_more_roles_include_fewer():
    few, more = (load("embedded", "", **{**OPTIONS, "num_roles": n}) for n in (2, 3))

    assert torch.equal(few.train.tensors[0], more.train.tensors[0][more.owners < 2])


def test_zero_roles_are_all():
    data = load("embedded", "", **{**OPTIONS, "num_roles": 0, "min_characters": 50_000})

    lengths = [len(text) for text in embedded_roles().values()]
    assert int(data.owners.max()) + 1 == sum(length >= 50_000 for length in lengths) > 0


@pytest.mark.parametrize(("roles", "least"), [(138, 10_000), (1, 1_000_000)])
def test_more_roles_than_there_are_are_refused(roles, least):
    with pytest.raises(ValueError, match=rf"num-roles must be 0 \(all\) .. \d+, not {roles}"):
        load("embedded", "", **{**OPTIONS, "num_roles": roles, "min_characters": least})


def leaf(texts, order=None):
    """LEAF's rows of some texts, by default in order."""
    rows = [
        {"character_id": role, "x": text[i : i + 80], "y": text[i + 80]}
        for role, text in texts.items()
        for i in range(len(text) - 80)
    ]
    return datasets.Dataset.from_list([rows[i] for i in order or range(len(rows))])


def long_text(role, length):
    return (f"{role} speaks and speaks, number {{}}. " * length).format(*range(length))[:length]


TEXTS = {role: long_text(role, length) for role, length in (("A", 500), ("B", 450), ("C", 200))}


def test_leafs_windows_are_put_together_again():
    assert leaf_roles(leaf(TEXTS), 450) == {"A": TEXTS["A"], "B": TEXTS["B"]}


def test_leafs_windows_in_another_order_are_refused():
    order = list(range(len(TEXTS["A"]) - 80))
    order[7], order[8] = order[8], order[7]

    with pytest.raises(ValueError, match="rows 6 and 7 of role 'A' are not windows of one text"):
        leaf_roles(leaf({"A": TEXTS["A"]}, order), 100)


def test_leafs_data_are_read_from_a_folder(tmp_path):
    datasets.DatasetDict({"train": leaf(TEXTS)}).save_to_disk(tmp_path)
    options = {"num_roles": 2, "min_characters": 450, "test_share": 0.5, "stride": 10}

    data = load("full", str(tmp_path), **options)

    assert sorted(data.owners.bincount().tolist()) == [15, 17]  # (225 or 250 - 81) // 10 + 1
    first = decoded(data.train.tensors[0][0])
    assert first in {TEXTS["A"][:80], TEXTS["B"][:80]}


def test_folder_without_leafs_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data-dir .* holds no LEAF data: expected"):
        load("full", str(tmp_path), **OPTIONS)


def test_full_without_network_says_what_needs_none(monkeypatch):
    def no_network(**kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(flwr_datasets, "FederatedDataset", no_network)

    with pytest.raises(RuntimeError, match=r'LEAF.*dataset="embedded".*no route to host'):
        load("full", "", **OPTIONS)


def test_the_model_is_the_papers_and_takes_bytes():
    model = TASK.build_model(config("shakespeare"), seed=0)
    (codes,) = TASK.example_inputs()

    # embedding 640, LSTM 4 * 256 * (8 + 256 + 2), linear layer 257 * 80
    assert sum(p.numel() for p in model.parameters()) == 640 + 272_384 + 20_560
    assert torch.equal(model(codes), model(codes.to(torch.uint8)))
    spec = derive_spec(model, (codes,))
    assert {group.size for group in spec.groups.values()} == {8, 256}


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("num-roles", -1, "at least 0"),
        ("num-roles", 2.5, "an integer"),
        ("stride", 0, "at least 1"),
        ("test-share", 0.0, "between 0 and 1"),
        ("test-share", 1.0, "between 0 and 1"),
        ("min-characters", 409, "at least 410"),  # (80 + 2) / 0.2
        ("hidden-size", 0, "at least 1"),
        ("partition", "dirichlet", "one of natural, homogeneous"),
    ],
)
def test_bad_config_values_are_refused_by_name(key, value, allowed):
    with pytest.raises(ValueError, match=rf"^{key} must be {allowed}, not "):
        TASK.validate({**config("shakespeare"), key: value}, 66)


def test_every_role_needs_its_client():
    settings = config("shakespeare", num_roles=3, stride=40)

    with pytest.raises(ValueError, match=r"num-supernodes.* must be 3, not 4"):
        TASK.validate(settings, 4)
    with pytest.raises(ValueError, match=r"num-supernodes.* must be 3, not 2"):
        TASK.load_partition(settings, 0, 2)


def test_a_round_of_two_roles():
    settings = {**config("shakespeare", num_roles=2, hidden_size=16, stride=40), **TINY}

    (entry,) = run(InProcessGrid(app, 2, settings), settings).result["rounds"]

    assert (entry["exchanges"], entry["client_epochs"]) == (2, 1)
    assert set(entry["widths"]) == {"encoder", "lstm"}
    assert entry["accuracy"] > 0.1  # the space alone is about a sixth of the text

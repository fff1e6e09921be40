"""A matcher of the user's own, of any class, takes part in everything that the shipped ones do."""

import numpy as np
import pytest

from fedma_flwr.matching import BBPMAP, IdentityMatching, Matching
from fedma_flwr.server.checkpoints import CheckpointError
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, initial_arrays, make_app


class Reversed:
    """Unit i of odd clients is the last but i of even ones'. No dataclass; it has no text."""

    output = "mean"

    def __init__(self, odd=1):
        self.odd = odd
        self.helper = object()  # whose text is an address
        self.asked = []

    def match(self, units, *, weights=None, max_width=None, seed=0):
        own = tuple(
            np.arange(len(rows))[:: -1 if client % 2 == self.odd else 1].copy()
            for client, rows in enumerate(units)
        )
        together = np.mean([rows[units] for rows, units in zip(units, own, strict=True)], axis=0)
        return Matching(own, together, np.full(len(own[0]), len(own)), 1.0, 1)


class Slotted(IdentityMatching):
    """No dictionary of attributes beside the dataclass's."""

    __slots__ = ()


def run(matcher, rounds, folder=None, *, resume=False, **options):
    strategy = LayerwiseFedMA(
        spec=SPEC, matcher=matcher, checkpoint_dir=folder, resume=resume, **options
    )
    grid = InProcessGrid(make_app(steps=1), CLIENTS)
    result = strategy.start(grid, initial_arrays(), num_rounds=rounds)
    return strategy, {name: array.data for name, array in result.arrays.items()}


@pytest.mark.parametrize("options", [{}, {"one_shot": True}, {"weighted_units": True}])
def test_a_matcher_of_any_class_runs_and_resumes(tmp_path, options):
    strategy, whole = run(Reversed(), 3, **options)
    matched = [record for record in strategy.history if record.groups]
    assert {record.identity for record in matched} == {0.5}
    run(Reversed(), 2, tmp_path, **options)
    # Another object, as in another process.
    resumed, arrays = run(Reversed(), 3, tmp_path, resume=True, **options)
    assert arrays == whole
    assert [r.round for r in resumed.history if r.groups] == [r.round for r in matched]


def test_a_fingerprint_has_no_address_and_tells_settings_apart():
    def text(matcher):
        return LayerwiseFedMA(spec=SPEC, matcher=matcher).settings.fingerprint()["matcher"]

    assert text(Reversed()) == text(Reversed())
    assert "0x" not in text(Reversed())
    assert text(Reversed(odd=0)) != text(Reversed())
    assert text(Slotted()) == text(Slotted())
    assert text(BBPMAP(gamma=2.0)) == str(BBPMAP(gamma=2.0))
    assert text(BBPMAP(gamma=2.0)) != text(BBPMAP(gamma=3.0))


def test_another_matcher_of_the_same_class_is_another_run(tmp_path):
    run(Reversed(), 1, tmp_path)
    with pytest.raises(CheckpointError, match="another run: its matcher is"):
        run(Reversed(odd=0), 2, tmp_path, resume=True)


def test_every_setting_is_in_the_fingerprint():
    plain = LayerwiseFedMA(spec=SPEC)._fingerprint()
    others = {
        "matcher": {"matcher": IdentityMatching()},
        "plan": {"groups_per_stage": "all"},
        "initialisation": {"initialisation": "own"},
        "max_growth": {"max_growth": 3.0},
        "weighted_units": {"weighted_units": True},
        "server_learning_rate": {"server_learning_rate": 0.5},
        "averaging": {"averaging": "trimmed_mean"},
        "limits": {"max_norm_ratio": 3.0},
        "wire_dtype": {"wire_dtype": "float16"},
        "weighted_by_key": {"weighted_by_key": "n"},
        "arrayrecord_key": {"arrayrecord_key": "w"},
        "configrecord_key": {"configrecord_key": "c"},
        "config_overrides": {"head_config": {"lr": 0.1}},
        "seed": {"seed": 1},
        "fraction_train": {"fraction_train": 0.5},
        "min_train_nodes": {"min_train_nodes": 3},
    }
    assert plain.keys() - others.keys() == {"strategy", "spec"}
    for name, option in others.items():
        other = LayerwiseFedMA(spec=SPEC, **option)._fingerprint()
        changed = {key for key in plain if other[key] != plain[key]}
        # A robust average bounds the weights too.
        assert changed == ({name, "limits"} if name == "averaging" else {name})
    assert LayerwiseFedMA(spec=SPEC, node_timeout=1.0, stage_timeout=1.0)._fingerprint() == plain

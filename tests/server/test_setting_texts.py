"""What of the settings' texts counts when a run goes on from a checkpoint."""

import json

from fedma_flwr.server.setting_texts import without_reasons
from fedma_flwr.structure import PermutationSpec

AXES = {"0.weight": "h, 4", "1.weight": "3, h"}


def spec(reason, size=8, **more):
    text = json.dumps({"groups": {"h": [size, reason]}, "axes": AXES, **more})
    return without_reasons(PermutationSpec.from_json(text).to_json())


def test_reasons_may_be_worded_anew():
    assert spec("a view of 8") == spec("the code writes 8 out")
    assert spec("x", pinned={"1.weight": "unknown operator"}) == spec("x")


def test_all_else_counts():
    assert spec("x") != spec("x", size=9)
    growable = PermutationSpec({"h": 8}, AXES).to_json()
    assert spec("x") != without_reasons(growable)


def test_what_is_no_spec_stays_what_it_is():
    for text in ("", "abc", "[]", "{}", '{"groups": 3}'):
        assert without_reasons(text) == text

"""The first page's picture, and the figures beside it, are those of the rows."""

from pathlib import Path

import pytest

from simulations.picture import OWN, SKEWS, accuracies, curve, draw, rows

ROOT = Path(__file__).parents[2]


def test_the_picture_is_drawn_from_the_rows_that_lie_there(tmp_path):
    draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_figures_beside_it_are_its_first_and_its_last_point(page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    found = rows("compare_digits")
    fedma, fedavg = curve(found, "fedma"), curve(found, "fedavg")
    assert len(fedma) == len(fedavg) == 12
    megabytes, accuracy, _ = fedma[0]
    assert f"FedMA has {accuracy:.1%} after its first round, for {megabytes:.0f} MB" in (
        text.replace(" %", "%")
    )
    megabytes, accuracy, _ = fedavg[-1]
    assert f"FedAvg has {accuracy:.1%} after twelve rounds, for {megabytes:.0f} MB" in (
        text.replace(" %", "%")
    )


def test_matching_gains_a_point_and_growth_up_to_half_a_point_more():
    for name in SKEWS:
        unmatched, matched, grown = (accuracies(rows(name), setting).mean() for setting in OWN)
        assert matched - unmatched == pytest.approx(0.01, abs=0.002)
        assert 0.0 < grown - matched < 0.0065


def test_a_setting_without_rows_is_named():
    with pytest.raises(ValueError, match="nothing"):
        accuracies(rows(next(iter(SKEWS))), "nothing")

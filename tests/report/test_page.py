"""The page as text: what it says, and what it must not do."""

import re
from html.parser import HTMLParser

import pytest

from fedma_flwr.report import Run, make_page, read_run, write_report
from fedma_flwr.report.__main__ import main
from fedma_flwr.report.head_scores import own_class_highest
from fedma_flwr.report.page import text
from tests.report.conftest import HOSTILE

TAGS = """html head meta link title style body h1 h2 h3 p nav a ul li i b span div section table
thead tbody tr th td details summary figure figcaption footer code svg g path defs use text image
rect clippath lineargradient stop tspan"""
ALLOWED = set(TAGS.split())


class Page(HTMLParser):
    """The tags, addresses and attributes of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.names = set(), [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.names |= {name for name, _ in attributes}
        self.addresses += [v for n, v in attributes if n.endswith(("href", "src"))]


@pytest.fixture(scope="module")
def page(folder):
    return write_report([folder], folder / "all.html").read_text(encoding="utf-8")


def test_the_page_says_what_there_is(page):
    for words in ("The plan of a round", "Who took part", "Units", "Filters of matched units"):
        assert f">{words}<" in page
    assert "The head, before and after it is solved" in page
    assert "solve the head" in page
    assert len(page) < 500_000


def test_what_a_client_says_is_text(page):
    """Its words are shown, and stay words."""
    assert text(HOSTILE) in page
    found = Page(page)
    assert found.tags <= ALLOWED, found.tags - ALLOWED
    assert not {name for name in found.names if name.startswith("on")}


def test_nothing_is_loaded_from_elsewhere(page):
    assert "default-src 'none'" in page
    outside = [a for a in Page(page).addresses if not a.startswith(("#", "data:"))]
    assert outside == []
    assert not re.search(r"url\((?!#)", page)


def test_no_id_stands_for_two_things(page):
    """Several drawings are in one page, and each refers to parts of its own by their ids."""
    found = {}
    for element, name in re.findall(r'(<[a-zA-Z0-9]+ [^>]*?id="([^"]*)"[^>]*>)', page):
        assert found.setdefault(name, element) == element


@pytest.mark.parametrize("value", [HOSTILE, "a\u202eb\x00c", "x" * 10_000, "quote \" and ' one"])
def test_any_name_can_be_drawn(value):
    """Groups, clients, runs and stages of any name: no formula, no markup, no end of the file."""
    stage = {
        "round": 1,
        "stage": 0,
        "stages": 1,
        "name": value,
        "groups": [value],
        "cohort": 2,
        "answered": 1,
        "took_part": [value],
        "dropped": {f"{value}2": value},
        "popularity": {value: [1, 2]},
        "similarity": {value: [0.1, 0.2, 0.3, 0.4, 0.5]},
        "widths": {value: 3},
    }
    found = Page(made := make_page([Run(value, [{"round": 1, "given-up": value}], [stage])]))
    assert found.tags <= ALLOWED
    assert "\u202e" not in made
    assert "\x00" not in made


@pytest.mark.parametrize(
    "changes",
    [
        {"filters": {"shape": [1, 2], "units": 3}},
        {"filters": {"shape": [1, 2, 2], "clients": ["1", "2"], "units": [{"values": [[1]] * 3}]}},
        {"head_scores": {"after": [[1.0], None]}},
        {"head_scores": {"before": "x"}},
        {"similarity": {"a": [1]}, "popularity": {"a": []}},
        {"cohort": 0, "answered": 0, "bytes_up": 0},
    ],
)
def test_records_of_other_forms_leave_gaps_and_no_error(changes):
    stage = {"round": 1, "stage": 0, "name": "local", "groups": ["a"], **changes}
    assert "<h1>" in make_page([Run("odd", [{"round": 1}], [stage])])


@pytest.mark.parametrize("count", [0, 1, 400])
def test_runs_of_any_length(count):
    rounds = [{"round": n, "accuracy": 0.5, "bytes_up": n} for n in range(1, count + 1)]
    stages = [
        {"round": n, "stage": 0, "stages": 1, "name": "local", "cohort": 3, "answered": 2}
        for n in range(1, count + 1)
    ]
    made = make_page([Run("long", rounds, stages), Run("empty")])
    assert len(made) < 600_000


def test_many_runs_are_told_apart(folder):
    runs = [Run(f"run {n}", read_run(folder / "fedavg").rounds) for n in range(20)]
    assert make_page(runs).count("<li>") == 20


def test_the_command_says_where_the_page_is(folder, capsys):
    assert main([str(folder / "fedavg"), "--output", str(folder / "deep" / "one.html")]) == 0
    assert "deep/one.html" in capsys.readouterr().out
    assert (folder / "deep" / "one.html").is_file()


def test_scores_are_counted_on_their_own_class():
    assert own_class_highest([[2.0, 1.0, 0.0], [3.0, 1.0, 0.0], None]) == (1, 2)

"""The tables of keys and arguments say what the code has: no key more or less, no other default."""

import inspect
import re

from fedma_flwr import FedMA
from fedma_flwr.matching import BBPMAP
from fedma_flwr.server.cohort import SeededCohort
from fedma_flwr.server.recorded_cohort import RecordedCohort
from fedma_flwr.server.resuming import ResumableCohort
from fedma_flwr.strategy import DEFAULT_MATCHER
from fedma_flwr.tasks.config import READERS
from tests.tasks.configs import DEFAULTS, ROOT

NO_SETTINGS = {"self", "fedavg", "cohort"}


def rows(page, first):
    """Cells of the tables whose header begins with `first`."""
    found, inside = [], False
    for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == first:
            inside = True
        elif inside and not line.startswith("|-"):
            found.append(cells)
    return found


def in_toml(value):
    """A default as TOML writes it; numbers by their value."""
    return value if isinstance(value, bool | str) else float(value)


def read(text):
    """A cell's default."""
    text = text.strip("`")
    if text.startswith('"'):
        return text.strip('"')
    return text == "true" if text in ("true", "false") else float(text)


def arguments():
    """Every keyword argument of the strategy's that is no FedAvg's, with its default."""
    found = {}
    for owner in (SeededCohort, RecordedCohort, ResumableCohort, FedMA):
        parameters = inspect.signature(owner.__init__).parameters
        found |= {n: p.default for n, p in parameters.items() if n not in NO_SETTINGS}
    return found | {"matcher": DEFAULT_MATCHER}


def test_every_config_key_stands_once_with_its_default():
    table = rows("configuration.md", "key")
    keys = [key.strip("`") for key, *_ in table]
    assert sorted(keys) == sorted(DEFAULTS)
    assert set(keys) == set(READERS)
    told = {key: read(row[1]) for key, row in zip(keys, table, strict=True)}
    assert told == {key: in_toml(value) for key, value in DEFAULTS.items()}


def test_every_key_is_explained():
    assert [row for row in rows("configuration.md", "key") if len(row) < 3 or len(row[2]) < 6] == []


def test_every_argument_stands_once_with_its_default():
    table = rows("strategy.md", "argument")
    told = {}
    for names, default, meaning in table:
        assert len(meaning) > 10
        for name in re.findall(r"`(\w+)`", names):
            assert name not in told
            told[name] = default.strip("`")
    real = arguments()
    assert told.keys() == real.keys()
    for name in set(real) - {"model", "example_inputs", "matcher"}:
        assert told[name] == repr(real[name]).replace("'", '"'), name
    assert eval(told["matcher"], {"BBPMAP": BBPMAP}) == real["matcher"]

"""Folders are proven before the first exchange, and no two runs share one."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fedma_flwr import FedAvg, FedMA
from fedma_flwr.server import folders
from fedma_flwr.server.folders import as_folder, claimed
from fedma_flwr.server.output_folder import OutputFolder
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, initial_arrays, make_app

DIES = """
import os, sys
from pathlib import Path
from fedma_flwr.server.folders import claimed
with claimed("checkpoint_dir", Path(sys.argv[1])):
    os.kill(os.getpid(), 9)
"""


def run(intercept=None, rounds=1, strategy=None, **options):
    strategy = strategy or FedMA(spec=SPEC, fraction_evaluate=0.0, **options)
    grid = InProcessGrid(make_app(), CLIENTS, intercept=intercept)
    strategy.start(grid, initial_arrays(), num_rounds=rounds)
    return strategy


def in_round(number, act):
    """An interceptor that acts once, when a round's first message goes out."""
    done = []

    def intercept(message, _):
        record = message.content.get("fedma")
        if record and record.get("round") == number and record["kind"] != "hello" and not done:
            done.append(act())

    return intercept


def names(path):
    return sorted(file.name for file in path.iterdir())


@pytest.mark.parametrize("argument", ["checkpoint_dir", "matchings"])
def test_a_second_run_in_a_folder_is_refused_before_it_sends_anything(tmp_path, argument):
    def second():
        with pytest.raises(ValueError, match=f"{argument} .* in use by another run") as error:
            run(lambda *_: pytest.fail("something was sent"), **{argument: tmp_path})
        assert f"process {os.getpid()}" in str(error.value)
        return True

    strategy = run(in_round(1, second), **{argument: tmp_path})

    assert [r.round for r in strategy.history if r.name != "hello"] == [1, 1]
    assert len(names(tmp_path)) == 1  # and no lock is left


def test_the_output_folder_is_one_runs_too(tmp_path):
    first, second = (OutputFolder(tmp_path, SPEC, {}) for _ in range(2))
    with (
        first.claimed(),
        pytest.raises(ValueError, match=r"output_dir .* in use"),
        second.claimed(),
    ):
        pytest.fail("both have it")
    with second.claimed():
        assert names(tmp_path) == [".output_dir.lock"]
    assert names(tmp_path) == []
    with OutputFolder(None, SPEC, {}).claimed():
        assert names(tmp_path) == []


def test_one_run_may_have_all_it_writes_in_one_folder(tmp_path):
    output = OutputFolder(tmp_path, SPEC, {})
    with output.claimed():
        run(checkpoint_dir=tmp_path, matchings=tmp_path, on_exchange=output.add_exchange)
    assert names(tmp_path) == ["exchanges.jsonl", "round-000001.json", "round-000001.safetensors"]


def test_saved_matchings_that_are_only_read_are_anybodys(tmp_path):
    run(matchings=tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    run(in_round(1, lambda: run(matchings=tmp_path)), matchings=tmp_path)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before


def test_what_a_killed_run_has_left_is_no_obstacle(tmp_path):
    result = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert result.returncode == -9
    assert names(tmp_path) == [".checkpoint_dir.lock"]
    (tmp_path / "round-000007.partial").write_text("half")
    (tmp_path / "mine.partial").write_text("not a run's")
    run(checkpoint_dir=tmp_path)
    assert names(tmp_path) == ["mine.partial", "round-000001.safetensors"]


def test_a_forked_child_neither_holds_nor_gives_back_the_lock(tmp_path):
    with claimed("checkpoint_dir", tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(len(folders._HELD))
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(ValueError, match="in use"), claimed("checkpoint_dir", tmp_path):
            pytest.fail("both have it")


def test_a_lock_that_is_removed_while_another_waits_for_it_is_not_taken(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder ended and a third run began."""
    real, seen = folders._try_lock, []

    def lock(handle):
        if not seen:
            seen.append(handle)
            (tmp_path / ".x.lock").unlink()
        real(handle)

    monkeypatch.setattr(folders, "_try_lock", lock)
    with claimed("x", tmp_path):
        monkeypatch.setattr(folders, "_try_lock", real)
        with pytest.raises(ValueError, match="in use"), claimed("x", tmp_path):
            pytest.fail("both have it")


def test_a_file_system_without_locks_costs_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(handle):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folders, "_try_lock", refuse)
    caplog.set_level("WARNING", logger="flwr")
    with claimed("x", tmp_path):
        assert "cannot be locked" in caplog.text


@pytest.mark.parametrize(
    ("argument", "make"),
    [("checkpoint_dir", FedAvg), ("checkpoint_dir", FedMA), ("matchings", FedMA)],
)
def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_sent(
    tmp_path, argument, make
):
    (tmp_path / "file").write_text("no folder")
    options = {"spec": SPEC} if make is FedMA else {}
    strategy = make(**options, **{argument: tmp_path / "file" / "new"})
    with pytest.raises(ValueError, match=f"{argument} .* cannot be written to"):
        run(lambda *_: pytest.fail("something was sent"), strategy=strategy)


def test_the_output_folder_cannot_be_made_within_a_file(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"output_dir .* cannot be written to"):
        OutputFolder(tmp_path / "file" / "new", SPEC, {})


def test_a_disk_that_is_full_already_is_refused(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ValueError, match="No space left"), claimed("x", tmp_path):
        pytest.fail("it was not tried")
    assert names(tmp_path) == []


def test_a_tilde_is_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_folder("x", "~/runs") == tmp_path / "runs"
    strategy = FedMA(spec=SPEC, checkpoint_dir="~/c", matchings=Path("~/m"))
    assert strategy.checkpoint_dir == tmp_path / "c"
    run(strategy=strategy)
    assert names(tmp_path) == ["c", "m"]
    with pytest.raises(ValueError, match="checkpoint_dir was '~nobody-is-called-this/x'"):
        FedAvg(checkpoint_dir="~nobody-is-called-this/x")


def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


def vanish(path):
    def act():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
        path.write_text("a file is in the way")

    return act


@pytest.fixture
def _space():
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.usefixtures("_space")
@pytest.mark.parametrize("trouble", ["full disk", "vanished folder"])
def test_trouble_with_the_disk_costs_a_warning_and_not_the_run(tmp_path, caplog, trouble):
    path = tmp_path / "run"
    output = OutputFolder(path, SPEC, {})
    made = FedMA(
        spec=SPEC, fraction_evaluate=0.0, checkpoint_dir=path, matchings=path,
        on_exchange=output.add_exchange,
    )  # fmt: skip

    def end():
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        if path.is_file():
            path.unlink()

    begin = full_disk if trouble == "full disk" else vanish(path)
    steps = [in_round(2, begin), in_round(3, end)]

    def evaluate(number, arrays):
        output.add_round(number, arrays, made.history, loss=0.0, accuracy=0.0)

    grid = InProcessGrid(make_app(), CLIENTS, intercept=lambda *m: [s(*m) for s in steps] and None)
    caplog.set_level("WARNING", logger="flwr")
    with output.claimed():
        made.start(grid, initial_arrays(), num_rounds=3, evaluate_fn=evaluate)
    for what in ("no checkpoint was written", "matching was not saved", "exchanges.jsonl was not"):
        assert what in caplog.text
    files = {"exchanges.jsonl", "result.json", "round-000003.json", "round-000003.safetensors"}
    if trouble == "full disk":  # what was there before is there still
        files |= {"round-000001.json", "round-000001.safetensors"}
    assert set(names(path)) == files
    lines = (path / "exchanges.jsonl").read_text().splitlines()
    assert len(lines) == len(made.history.exchanges)  # what was missed is made up for
    resumed = FedMA(spec=SPEC, fraction_evaluate=0.0, checkpoint_dir=path, resume=True)
    assert run(strategy=resumed, rounds=4).history.exchanges[-1].round == 4

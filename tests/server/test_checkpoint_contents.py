"""Checkpoints: those of another run are refused, and what is saved is read back whole."""

import shutil

import pytest
import torch
from flwr.app import MetricRecord
from torch import nn

from fedma_flwr import FedAvg
from fedma_flwr.matching import BBPMAP
from fedma_flwr.server import checkpoints
from fedma_flwr.server.checkpoints import Checkpoint, CheckpointError, CheckpointFolder
from fedma_flwr.server.global_model import GlobalModel
from fedma_flwr.server.history import ExchangeRecord
from fedma_flwr.structure import sequential_spec
from tests.server.resumed_runs import GROWING, assert_equal, make_grid, run
from tests.toy import SPEC, LayerwiseFedMA, initial_arrays


class Other(nn.Module):
    """Hidden layers of other widths than the toy's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 5), nn.Linear(5, 8), nn.Linear(8, 2)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"max_growth": 3.0}, "max_growth"),
        ({"matcher": BBPMAP()}, "matcher"),
        ({"groups_per_stage": "all"}, "plan"),
        ({"retrain_config": {"lr": 0.5}}, "config_overrides"),
        ({"fraction_train": 1.0}, "fraction_train"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, options, name):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=1)
    with pytest.raises(CheckpointError, match=f"another run: its {name} is"):
        run(LayerwiseFedMA(**{**GROWING, **options}, checkpoint_dir=tmp_path, resume=True))


def test_a_checkpoint_of_another_model_or_strategy_is_refused(tmp_path):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=1)
    other = LayerwiseFedMA(
        **{**GROWING, "spec": sequential_spec(Other())}, checkpoint_dir=tmp_path, resume=True
    )
    arrays = type(initial_arrays())(Other().state_dict())
    with pytest.raises(CheckpointError, match="another run: its model is"):
        other.start(make_grid(), arrays, num_rounds=2)
    with pytest.raises(CheckpointError, match="another run"):
        run(FedAvg(checkpoint_dir=tmp_path, resume=True))


def test_an_earlier_runs_checkpoints_are_not_overwritten_by_mistake(tmp_path):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=1)
    with pytest.raises(CheckpointError, match="resume=True"):
        run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path))


def test_fewer_rounds_than_are_done_are_refused(tmp_path):
    run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path), rounds=2)
    with pytest.raises(ValueError, match="num_rounds was 1"):
        run(LayerwiseFedMA(**GROWING, checkpoint_dir=tmp_path, resume=True), rounds=1)


def test_resume_needs_a_folder():
    with pytest.raises(ValueError, match="checkpoint_dir"):
        LayerwiseFedMA(spec=SPEC, resume=True)


def test_a_checkpoint_survives_its_file_whatever_the_clients_are_called(tmp_path):
    units = torch.tensor([2, 0, 1])
    checkpoint = Checkpoint(
        round=7,
        model=GlobalModel(
            tensors={
                "w": torch.randn(3, 2),
                "count": torch.tensor(5),
                "half": torch.ones(2).half(),
            },
            token="abc.7.2",
            # Two clients with the very same object: memory that they share is written twice.
            assignments={"../a.b": {"g": units}, "münchen": {"g": units}},
            popularity={"g": torch.tensor([2, 2, 2])},
        ),
        exchanges=[ExchangeRecord(7, 0, 1, "local", ("g",), resent=("1",), identity=0.5)],
        given_up={3: "too few"},
        train_metrics={7: MetricRecord({"loss": 0.1 + 0.2, "nan": float("nan"), "n": [1, 2]})},
    )
    folder = CheckpointFolder(tmp_path / "new" / "folder", {"a": "b"})
    folder.save(checkpoint)
    read = folder.latest()
    assert read.model.token == "abc.7.2"
    assert list(read.model.tensors) == ["w", "count", "half"]
    for name, tensor in checkpoint.model.tensors.items():
        assert torch.equal(read.model.tensors[name], tensor)
        assert read.model.tensors[name].dtype == tensor.dtype
    assert list(read.model.assignments) == ["../a.b", "münchen"]
    assert all(torch.equal(entry["g"], units) for entry in read.model.assignments.values())
    assert read.exchanges == checkpoint.exchanges
    assert read.given_up == {3: "too few"}
    assert read.train_metrics[7]["loss"] == 0.1 + 0.2
    assert read.train_metrics[7]["nan"] != read.train_metrics[7]["nan"]
    assert read.train_metrics[7]["n"] == [1, 2]


def test_a_history_that_is_too_long_for_a_header_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "_LONGEST_TEXT", 100)
    dropped = {"0": "x" * 1000}
    written = Checkpoint(1, GlobalModel({"w": torch.ones(2)}), given_up={1: "münchen"})
    written.exchanges.append(ExchangeRecord(1, 0, 1, "local", dropped=dropped))
    folder = CheckpointFolder(tmp_path, {})
    folder.save(written)
    with checkpoints.safe_open(folder.files()[0], framework="pt") as opened:
        assert len(str(opened.metadata())) < 200
    read = folder.latest()
    assert (read.exchanges, read.given_up) == (written.exchanges, written.given_up)
    assert list(read.model.tensors) == ["w"]


def test_no_folder_and_an_empty_one_begin_with_round_1(tmp_path):
    wanted = run(LayerwiseFedMA(**GROWING), rounds=1)
    for folder in (tmp_path / "not there", tmp_path):
        result = run(LayerwiseFedMA(**GROWING, checkpoint_dir=folder, resume=True), rounds=1)
        assert_equal(result, wanted)
        shutil.rmtree(folder)

"""Runs of today go on from checkpoints that an earlier version has written.

The files of `tests/data/checkpoints` were written with ``checkpoint_dir`` by runs of 2 and of 4
rounds, before the package was divided into rooms.
"""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedma_flwr import FedAvg, load_model
from fedma_flwr.protocol import to_tensors
from fedma_flwr.testing import InProcessGrid
from tests.toy import CLIENTS, SPEC, LayerwiseFedMA, Net, fit, initial_arrays, make_app

FILES = Path(__file__).parent.parent / "data" / "checkpoints"
MAKE = {
    "fedma": lambda **options: LayerwiseFedMA(
        spec=SPEC, seed=3, min_train_nodes=2, server_learning_rate=0.5, **options
    ),
    "fedavg": lambda **options: FedAvg(seed=3, **options),
}
LOCAL_TRAINING = "637aac9559844a02b1f2f3fd07a8f2da9b3cc3847be6b3bf808d6c9d1a537da5"


def trains_alike():
    """Whether torch trains a client here as it did where the files were written, bit for bit."""
    model = load_model(Net(), initial_arrays())
    fit(model, client=0)
    numbers = torch.cat([tensor.flatten() for tensor in model.state_dict().values()]).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest() == LOCAL_TRAINING


@pytest.mark.parametrize("name", MAKE)
def test_a_run_goes_on_from_an_earlier_versions_checkpoint(tmp_path, name):
    shutil.copy(FILES / f"{name}-after-2-rounds.safetensors", tmp_path / "round-000002.safetensors")
    strategy = MAKE[name](checkpoint_dir=tmp_path, resume=True)
    asked = []
    grid = InProcessGrid(make_app(), CLIENTS, intercept=lambda m, _: asked.append(m.content))

    arrays = to_tensors(strategy.start(grid, initial_arrays(), num_rounds=4).arrays)

    rounds = {content["config"]["server-round"] for content in asked if "config" in content}
    assert rounds == {2, 3, 4}  # of round 2 only the evaluation
    assert [r.round for r in strategy.history if r.name == "local"] == [1, 2, 3, 4]
    wanted = load_file(FILES / f"{name}-after-4-rounds.safetensors")
    wanted = {
        key.removeprefix("model."): t for key, t in wanted.items() if key.startswith("model.")
    }
    assert arrays.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(arrays[key], tensor, rtol=1e-4, atol=1e-5)
        if trains_alike():
            assert torch.equal(arrays[key], tensor), key

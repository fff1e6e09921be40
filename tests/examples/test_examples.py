"""The example apps: FedMA's form, and FedAvg's, which is one README's lines away.

Client epochs are those in which clients train: a pass that only sums up moments is none.
"""

import logging
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.examples.apps import (
    MOST_CHANGED_LINES,
    changed_lines,
    copy_with_fedavg,
    readme_diff,
    run_folder,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
ROUNDS = 2
# By folder: the package, what must be installed, clients, and training stages in FedMA's rounds.
CASES = {
    "lightning": ("lightning_digits", "pytorch_lightning", 4, 1),
    "text": ("role_text", "transformers", 2, 1),
    "lora": ("lora_digits", "peft", 4, 2),
    "personal": ("personal_norms", None, 4, 1),
    "devices": ("device_digits", None, 6, 1),
}


@pytest.mark.parametrize("folder", CASES)
def test_few_lines_change(folder):
    counts = [changed_lines(lines) for lines in readme_diff(EXAMPLES / folder).values()]
    assert max(map(sum, zip(*counts, strict=True))) <= MOST_CHANGED_LINES


@pytest.mark.long
@pytest.mark.parametrize("folder", CASES)
def test_fedma_is_at_least_as_accurate_after_as_many_client_epochs(folder, tmp_path):
    package, needs, clients, stages = CASES[folder]
    if needs is not None and find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed: pip install 'fedma-flwr[examples]'")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # a banner a fit
    copy_with_fedavg(EXAMPLES / folder, tmp_path / folder)
    fedavg = run_folder(tmp_path / folder, package, clients, num_server_rounds=stages * ROUNDS)
    fedma = run_folder(EXAMPLES / folder, package, clients, num_server_rounds=ROUNDS)
    assert fedma[-1] >= fedavg[-1]

"""A proof that takes long says so, though it keeps all other logs quiet."""

import logging

import pytest

from fedma_flwr.structure.model_copies import quiet
from fedma_flwr.structure.proving.progress import Progress


def test_words_come_after_three_seconds_and_ever_more_seldom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seconds = iter(range(100))
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        progress = Progress("Net", clock=lambda: float(next(seconds)))
        with quiet():
            for _ in range(30):
                progress.step()
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    said = list(dict.fromkeys(record.getMessage() for record in caplog.records))
    assert [text.split(": ")[1] for text in said] == [
        f"{count} passes, {count} s so far." for count in (3, 6, 12, 24)
    ]

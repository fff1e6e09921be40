"""`Stage`: what a message's config says about epochs and the learning rate."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedma_flwr import Stage
from fedma_flwr.protocol import ClientError
from fedma_flwr.testing import InProcessGrid
from tests.toy import make_app


def stage(**config):
    InProcessGrid(make_app(), 1)  # Flower refuses to make messages outside a run
    record = ConfigRecord({key.replace("_", "-"): value for key, value in config.items()})
    content = RecordDict({"config": record})
    return Stage.from_message(Message(content=content, dst_node_id=1, message_type="train"))


def test_values_are_read_as_they_are():
    read = stage(local_epochs=7, lr=1)

    assert (read.epochs, read.lr) == (7, 1.0)
    assert (stage().epochs, stage().lr) == (None, None)
    assert stage(local_epochs=3.0).epochs == 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"local_epochs": 1.5}, r"local-epochs was 1.5; it must be a whole number"),
        ({"local_epochs": "many"}, r"local-epochs was 'many'; it must be a number"),
        ({"lr": "fast"}, r"lr was 'fast'; it must be a number"),
        ({"lr": True}, r"lr was True; it must be a number"),
    ],
)
def test_what_cannot_be_read_names_its_key(config, words):
    with pytest.raises(ClientError, match=words):
        stage(**config)

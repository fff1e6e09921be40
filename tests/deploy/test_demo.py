"""What the demo shows, without Flower's processes."""

import pytest

from deploy.demo import Follower
from deploy.federation import Federation


def test_a_follower_prints_whole_lines_once(tmp_path, capsys):
    log = tmp_path / "run.log"
    log.write_text("of an earlier run\n")
    follower = Follower(log)
    follower.show()
    assert capsys.readouterr().out == ""
    log.write_text("\x1b[92mone\x1b[0m\ntw")
    follower.show()
    assert capsys.readouterr().out == "one\n"
    log.write_text("one\ntwo\nthree\n")
    follower.show()
    assert capsys.readouterr().out == "two\nthree\n"


def test_a_federation_without_nodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_nodes was 0"):
        Federation(tmp_path, 0)

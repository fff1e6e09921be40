"""The batch-norm comparison, in as few steps as possible."""

import json

from simulations import batch_norm


def test_the_comparison_prints_and_writes_every_setting(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(batch_norm, "EPOCHS", {"local": 1, "retrain": 1, "head": 1})
    monkeypatch.setattr(batch_norm, "TRAIN_EXAMPLES", 300)
    monkeypatch.setattr(batch_norm, "ROUNDS", 1)
    file = tmp_path / "rows.json"
    batch_norm.main(["--seeds", "1", "--start", "own", "--bundled", "--json", str(file)])
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [(row["start"], row["reestimate"], row["bundled"]) for row in rows] == [
        ("own", True, True),
        ("own", False, True),
    ]
    assert all(0.0 <= accuracy <= 1.0 for row in rows for (accuracy,) in row["accuracies"])
    assert [len(row["accuracies"]) for row in rows] == [1, 1]
    assert capsys.readouterr().out.count("reestimate_statistics=") == 2

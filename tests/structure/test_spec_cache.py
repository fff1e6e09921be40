"""Specs that are kept in a folder, and what a digest tells apart."""

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from fedma_flwr import FedMA
from fedma_flwr.structure import cached_spec, spec_cache
from fedma_flwr.structure.model_digest import model_digest

X = (torch.zeros(2, 4),)


class Net(nn.Module):
    def __init__(self, width=8, factor=1, scale=2.0):
        super().__init__()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 3)
        self.factor = factor
        self.options = {"scale": scale, "act": torch.relu}
        self.register_buffer("mask", torch.ones(width))

    def forward(self, x):
        return self.b(self.a(x).relu() * self.mask) * self.factor


def test_a_spec_is_derived_once(tmp_path, monkeypatch):
    folder = tmp_path / "specs"
    first = cached_spec(Net(), X, folder)
    monkeypatch.setattr(spec_cache, "derive_spec", None)
    assert cached_spec(Net(), X, folder).to_json() == first.to_json()
    assert len(list(folder.iterdir())) == 1


def test_the_digest_is_the_same_in_another_process(tmp_path):
    (tmp_path / "app.py").write_text(
        textwrap.dedent(
            """
            import torch
            from torch import nn
            from fedma_flwr.structure.model_digest import model_digest

            def double(x):
                return 2 * x

            class Own(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.a, self.act = nn.Linear(4, 3), double
                    self.kinds = {"b", "a", "c"}

                def forward(self, x):
                    return self.act(self.a(x))

            if __name__ == "__main__":
                print(model_digest(Own(), (torch.zeros(2, 4),)))
            """
        )
    )

    def run():
        done = subprocess.run(
            [sys.executable, "app.py"], cwd=tmp_path, capture_output=True, check=True, text=True
        )
        return done.stdout

    first = run()
    assert run() == first
    source = (tmp_path / "app.py").read_text()
    (tmp_path / "app.py").write_text(source.replace("2 * x", "3 * x"))
    assert run() != first


def masked():
    net = Net()
    net.mask[0] = 0
    return net


def tied():
    net = Net(width=4)
    net.c = nn.Linear(4, 4)
    return net


def tied_twice():
    net = tied()
    net.c.weight = net.a.weight
    return net


def test_whatever_a_spec_may_depend_on_changes_the_digest():
    models = [
        Net(),
        Net(width=9),
        Net(factor=2),
        Net(scale=3.0),
        Net().eval(),
        masked(),
        tied(),
        tied_twice(),
    ]
    digests = [model_digest(model, X) for model in models]
    digests.append(model_digest(Net(), (torch.zeros(3, 4),)))
    digests.append(model_digest(Net(), (torch.ones(2, 4),)))
    digests.append(model_digest(Net(), {"x": torch.zeros(2, 4)}))
    assert len(set(digests)) == len(digests)


def test_values_of_parameters_do_not():
    torch.manual_seed(0)
    one = model_digest(Net(), X)
    torch.manual_seed(1)
    assert model_digest(Net(), X) == one


@pytest.mark.parametrize("text", ["", "{", "[]", '{"groups": 3}'])
def test_a_damaged_file_is_replaced(tmp_path, text, caplog):
    first = cached_spec(Net(), X, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(text)
    assert cached_spec(Net(), X, tmp_path).to_json() == first.to_json()
    assert "derived again" in caplog.text
    assert file.read_text() == first.to_json()


def test_the_spec_of_another_model_is_not_taken(tmp_path, caplog):
    cached_spec(Net(), X, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(cached_spec(Net(width=9), X, tmp_path / "other").to_json())
    assert cached_spec(Net(), X, tmp_path).sizes == {"a": 8}
    assert "another model" in caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert cached_spec(Net(), X, tmp_path / "file" / "specs").sizes == {"a": 8}
    assert "is not kept" in caplog.text


def test_code_that_is_in_no_file_costs_a_warning(tmp_path, caplog):
    scope = {"nn": nn, "__name__": "typed_in"}
    exec("class Typed(nn.Module):\n    pass", scope)
    sys.modules["typed_in"] = type(sys)("typed_in")
    try:
        net = Net()
        net.extra = scope["Typed"]()
        assert cached_spec(net, X, tmp_path).sizes == {"a": 8}
    finally:
        del sys.modules["typed_in"]
    assert "is not kept" in caplog.text


def test_a_strategy_keeps_its_spec(tmp_path, monkeypatch):
    first = FedMA(model=Net(), example_inputs=X, spec_cache=tmp_path)
    monkeypatch.setattr(spec_cache, "derive_spec", None)
    again = FedMA(model=Net(), example_inputs=X, spec_cache=tmp_path)
    assert again.settings.spec.to_json() == first.settings.spec.to_json()

"""Replayed steps, with a capture that stands in for a CUDA graph's: on the CPU, the same way."""

import torch
from torch.utils.data import TensorDataset

from fedma_flwr.tasks import training
from fedma_flwr.tasks.replay import Replayed


class Recorder:
    """Like a capture, it does not run what it is given; what it returns does."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, run):
        self.captured += 1

        def replay():
            self.replayed += 1
            run()

        return replay


def test_batches_of_the_size_are_replayed_on_memory_of_the_steps_own():
    seen, places, recorder = [], set(), Recorder()

    def step(inputs, labels):
        seen.append((inputs.tolist(), labels.tolist()))
        places.add(inputs.data_ptr() if recorder.captured else None)

    replayed = Replayed(step, 2, recorder)
    batches = [(torch.tensor([i, i + 1.0]), torch.tensor([i, i])) for i in range(6)]
    for batch in batches:
        replayed(*batch)

    assert seen == [(x.tolist(), y.tolist()) for x, y in batches]
    assert (recorder.captured, recorder.replayed) == (1, 3)
    assert len(places - {None}) == 1  # a graph reads where it was captured


def test_the_last_smaller_batch_is_not_replayed():
    sizes, recorder = [], Recorder()
    replayed = Replayed(lambda batch: sizes.append(len(batch)), 4, recorder)
    for size in (4, 4, 4, 4, 1, 4):
        replayed(torch.arange(size))

    assert sizes == [4, 4, 4, 4, 1, 4]
    assert recorder.replayed == 2


def test_training_by_replay_is_training(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(30, 5, generator=generator), torch.randint(0, 3, (30,), generator=generator)
    )

    def train(replay=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
        if replay is not None:
            make_step = training._step
            monkeypatch.setattr(training, "_step", lambda *args: replay(make_step(*args)))
        loss = training.train(
            model,
            data,
            epochs=3,
            lr=0.1,
            momentum=0.9,
            weight_decay=0.0,
            batch_size=4,
            seed=1,
            device=torch.device("cpu"),
        )
        return loss, torch.cat([p.detach().flatten() for p in model.parameters()])

    recorder = Recorder()
    plain, replayed = train(), train(lambda step: Replayed(step, 4, recorder))

    assert recorder.replayed == 3 * 7 - 3
    assert plain[0] == replayed[0]
    assert torch.equal(plain[1], replayed[1])

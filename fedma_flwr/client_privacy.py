"""Differential privacy on a client: what Opacus has spent so far, and what it does not protect."""

from __future__ import annotations

from typing import Any, Protocol

from flwr.app import ConfigRecord, Context
from torch import nn

from fedma_flwr.protocol import SPENT_KEY, ClientError


class Accountant(Protocol):
    """What all of Opacus' accountants have (``opacus.accountants``)."""

    #: Of each kind of step: noise multiplier, sample rate, and how many there were.
    history: list[tuple[float, float, int]]

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Take note of one step."""


def restore_privacy(accountant: Accountant, context: Context) -> None:
    """Give a new accountant what this client has spent in earlier stages and rounds.

    A train function is called several times a run, and a new ``PrivacyEngine`` knows of one call
    alone. The privacy of a client is that of all its private passes.

    Parameters
    ----------
    accountant : Accountant
        For example ``PrivacyEngine().accountant``; what it has noted before is forgotten.
    context : Context
        The client's.
    """
    record = context.state.config_records.get(SPENT_KEY, ConfigRecord())
    columns: Any = [record.get(key, []) for key in ("noise", "rates", "steps")]
    accountant.history = [
        (float(noise), float(rate), int(steps)) for noise, rate, steps in zip(*columns, strict=True)
    ]


def keep_privacy(accountant: Accountant, context: Context) -> None:
    """Keep what an accountant has noted in the client's state, for `restore_privacy`.

    Parameters
    ----------
    accountant : Accountant
        After training.
    context : Context
        The client's.
    """
    entries = list(accountant.history)
    context.state.pop(SPENT_KEY, None)
    if entries:  # Flower cannot count an empty list
        noise, rates, steps = zip(*entries, strict=True)
        context.state[SPENT_KEY] = ConfigRecord(
            {
                "noise": [float(value) for value in noise],
                "rates": [float(value) for value in rates],
                "steps": [int(value) for value in steps],
            }
        )


def without_opacus(model: nn.Module) -> nn.Module:
    """The module inside of Opacus' ``GradSampleModule``, or the module itself."""
    while isinstance(inner := getattr(model, "_module", None), nn.Module) and any(
        "GradSample" in kind.__name__ for kind in type(model).__mro__
    ):
        model = inner
    return model


def is_private(module: nn.Module) -> bool:
    """Whether Opacus takes a module's gradients example by example."""
    return any(hasattr(parameter, "grad_sample") for parameter in module.parameters())


def refuse_bare_moments(head: nn.Module) -> None:
    """Refuse to read moments of a head that is trained by Opacus.

    Raises
    ------
    ClientError
        Opacus adds noise to gradients; moments are sums over examples without any.
    """
    if is_private(head):
        raise ClientError(
            "This model is trained by Opacus, which adds noise to gradients, but not to the "
            "moments that the head stage sends. In that stage (`Stage.from_message(msg)"
            ".solves_head`) reply with `fedma_flwr.private_head_moments(...).arrays` in place of "
            'training, or give the strategy head="trained", or call `load_model` and train '
            "without Opacus in that stage if the moments need no protection."
        )

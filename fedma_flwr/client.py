"""What a train function uses: `load_model`, `Stage`, `proximal_term`, `class_counts`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray
from torch import Tensor, nn

from fedma_flwr import protocol
from fedma_flwr.class_labels import class_counts
from fedma_flwr.client_moments import current_hook
from fedma_flwr.client_statistics import estimate_statistics
from fedma_flwr.model_sources import load_values
from fedma_flwr.protocol import ClientError, Instruction
from fedma_flwr.settled_values import (
    has_hooks,
    in_stage,
    keep_buffers,
    keep_parameters,
    moving_tensors,
    note_loaded,
)
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.state_dict_names import RUNNING_MEAN
from fedma_flwr.structure.wrapped_models import under_names

Source = (
    Message
    | ArrayRecord
    | Mapping[str, Tensor]
    | Mapping[str, NDArray[Any]]
    | Sequence[NDArray[Any]]
)


@dataclass(frozen=True)
class Stage:
    """What a train function may want to know about the stage it works for.

    Parameters
    ----------
    round : int
        Communication round, from 1.
    index, count : int
        Number of the stage (from 0), and of stages in a round.
    name : {"local", "retrain", "head"}
        Train everything; retrain what is not settled; train the head.
    frozen, trainable : tuple of str
        Tensors that `load_model` freezes, and the others. A client that starts from its own
        weights has no arrays yet: then `trainable` is empty too.
    epochs : int or None
        Config key ``local-epochs`` of the message, which the strategy sets stage by stage.
    lr : float or None
        Config key ``lr`` of the message, likewise.
    solves_head : bool
        Whether nothing is trained: the server solves the head from moments of its inputs, which
        `load_model` sums up while the model is trained as ever.
    """

    round: int
    index: int
    count: int
    name: str
    frozen: tuple[str, ...]
    trainable: tuple[str, ...]
    epochs: int | None
    lr: float | None
    solves_head: bool = False

    @classmethod
    def from_message(cls, message: Message) -> Stage:
        """Read the stage of a message; one of FedAvg or FedProx is a single ``local`` stage."""
        instruction = protocol.find_instruction(message.content) or Instruction("", stages=1)
        config = _merged_config(message)
        arrays = _arrays(message, instruction) or ArrayRecord()
        epochs = _whole_number(config, protocol.EPOCHS_CONFIG_KEY)
        lr = _number(config, protocol.LEARNING_RATE_KEY)
        return cls(
            round=instruction.round or int(config.get(protocol.SERVER_ROUND_KEY, 0)),
            index=instruction.stage,
            count=instruction.stages,
            name=instruction.name,
            frozen=instruction.settled,
            trainable=tuple(name for name in arrays if name not in instruction.settled),
            # Moments need one pass: more would only repeat the sums.
            epochs=1 if instruction.head_module else epochs,
            lr=None if lr is None else float(lr),
            solves_head=instruction.head_module != "",
        )


def _number(config: Mapping[str, Any], key: str) -> float | None:
    """A config value that may be missing; a `ClientError` names its key if it is no number."""
    value = config.get(key)
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise ClientError(f"{key} was {value!r}; it must be a number.")


def _whole_number(config: Mapping[str, Any], key: str) -> int | None:
    value = _number(config, key)
    if value is not None and not float(value).is_integer():
        raise ClientError(f"{key} was {value!r}; it must be a whole number.")
    return None if value is None else int(value)


def _merged_config(message: Message) -> dict[str, Any]:
    records = message.content.config_records
    return {
        key: value
        for name, record in records.items()
        if name != protocol.FEDMA_KEY
        for key, value in record.items()
    }


def load_model(
    model: nn.Module,
    source: Source,
    *,
    strict: bool = True,
    width: float = 1.0,
    spec: PermutationSpec | None = None,
) -> nn.Module:
    """Give a model the widths and values of a message, and freeze what is settled.

    Parameters
    ----------
    model : nn.Module
        As its code builds it, lazy layers included; it is changed in place. It may be wrapped by
        ``torch.compile``, ``DataParallel`` or Opacus.
    source : Message or ArrayRecord or mapping of str to Tensor or array, or sequence of arrays
        A message to a train or evaluate function (of any strategy), the arrays that
        ``evaluate_fn`` gets or that a run returned, or a saved state dict. Arrays without names
        are in the order of the model's state dict.
    strict : bool (default: True)
        Whether all tensors of the model must be there. False: the model keeps its own where they
        lack, as in messages of a run whose initial arrays were only some of the model's tensors.
    width : float (default: 1.0)
        Of a narrow model, made of the first units of a whole one's arrays, relative to the model's
        own widths: above 0, at most 1. A strategy's `arrays_at` has the head of a width, too.
    spec : PermutationSpec, optional
        The model's, for `width`. None: that of a strategy in this process, or of `derive_spec`.

    Returns
    -------
    nn.Module
        The same object. Settled parameters do not require gradients, and normalisation layers
        whose running statistics are settled keep them, also after ``model.train()``, as other
        settled buffers are kept. Where nothing is left to train, settled parameters require
        gradients for the train function's sake, but do not move. If clients start from their own
        weights and the message brings none, the model is left as it is.

    Raises
    ------
    RuntimeError
        If a FedMA message did not pass through `fedma_mod`.
    SpecError
        If the arrays are not those of this model.

    Examples
    --------
    >>> net = load_model(nn.Linear(2, 3), {"weight": torch.ones(5, 2), "bias": torch.zeros(5)})
    >>> net.out_features
    5
    """
    instruction, values = Instruction(""), source
    if width != 1.0 and isinstance(source, Message):
        raise ClientError("load_model: width is for arrays; a message has its client's width.")
    if isinstance(source, Message):
        instruction, arrays = _read_message(source)
        if arrays is None:
            note_loaded(model, set(), {})
            return model
        values = arrays
    for undo in _FROZEN.pop(model, []):  # a model may be used for several stages
        undo()
    is_partial = not strict or instruction.partial
    load_values(model, values, partial=is_partial, width=width, spec=spec)
    _prepare(model, instruction)
    return model


def _prepare(model: nn.Module, instruction: Instruction) -> None:
    """Freeze what is settled in a model with a stage's values, and hook what is measured."""
    if (hook := current_hook()) is not None:
        hook.narrower.build(model)
    own = model.state_dict(keep_vars=True)
    settled = under_names(dict.fromkeys(instruction.settled), own)
    moving = moving_tensors(model) | _freeze(
        model, settled.keys(), trains=in_stage() and not instruction.head_module
    )
    hooked = bool(instruction.head_module or instruction.estimates) or has_hooks(model)
    note_loaded(model, moving, dict.fromkeys(instruction.settled), hooked=hooked)
    estimate_statistics(model, list(under_names(dict.fromkeys(instruction.estimates), own)))
    if instruction.head_module and hook is not None:
        hook.attach(model)


def _read_message(message: Message) -> tuple[Instruction, ArrayRecord | None]:
    instruction = protocol.find_instruction(message.content)
    if instruction is not None and not instruction.merged:
        raise ClientError(
            f"fedma_mod has not prepared this message, a stage of FedMA: {protocol.ADD_THE_MOD}."
        )
    if instruction is not None:
        received = _arrays(message, instruction)
        if received is None and message.content.array_records:
            raise ClientError(
                f"The message has {len(message.content.array_records)} ArrayRecords; load_model "
                f"needs one that is called {instruction.arrays_key!r}."
            )
        return instruction, received or None
    arrays = list(message.content.array_records.values())
    if len(arrays) != 1:
        raise ClientError(f"The message has {len(arrays)} ArrayRecords; load_model needs one.")
    return instruction or Instruction(""), arrays[0]


def _arrays(message: Message, instruction: Instruction) -> ArrayRecord | None:
    """The model's arrays; with a stage of FedMA, a message may have others beside them."""
    records = message.content.array_records
    if instruction.kind:
        return records.get(instruction.arrays_key)
    return next(iter(records.values()), None)


#: By model, what sets free again what an earlier `load_model` has frozen.
_FROZEN: WeakKeyDictionary[nn.Module, list[Callable[[], object]]] = WeakKeyDictionary()


def _freeze(model: nn.Module, settled: Set[str], *, trains: bool = False) -> set[str]:
    """Freeze what is settled; the names of those that had to stay differentiable for the loss."""
    undo = _FROZEN.setdefault(model, [])
    frozen: dict[str, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if name in settled and (parameter.requires_grad or parameter in set(frozen.values())):
            frozen[name] = parameter
            parameter.requires_grad_(False)
            undo.append(partial(parameter.requires_grad_, True))
    undo += keep_buffers(model, settled)
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if f"{dot}{RUNNING_MEAN}" in settled:
            # requires_grad does not stop running statistics, and model.train() undoes eval().
            undo.append(module.register_forward_pre_hook(_use_kept_statistics).remove)
    if not frozen or not trains or any(p.requires_grad for p in model.parameters()):
        return set()
    undo += keep_parameters(model, set(frozen.values()))  # nothing is left to train
    return set(frozen)


def _use_kept_statistics(module: nn.Module, _: Any) -> None:
    module.eval()


def proximal_term(model: nn.Module, mu: float, reference: Mapping[str, Tensor]) -> Tensor:
    """FedProx's term ``(mu / 2) * ||w - w_global||^2`` (Li et al., 2020, equation 2).

    Parameters
    ----------
    model : nn.Module
        The model in training; only parameters that require gradients count.
    mu : float
        Weight of the term; a message of FedProx has it as config key ``proximal-mu``.
    reference : mapping of str to Tensor
        The global parameters by name: copies made after `load_model` and before training.

    Returns
    -------
    Tensor
        Scalar, to be added to the loss.
    """
    moved = [
        (parameter - reference[name]).reshape(-1)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    return 0.5 * mu * torch.stack([difference.dot(difference) for difference in moved]).sum()


__all__ = ["Source", "Stage", "class_counts", "load_model", "proximal_term"]

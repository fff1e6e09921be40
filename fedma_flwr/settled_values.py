"""What is settled stays so: values that a training step or a forward pass would change.

`load_model` freezes settled parameters. Buffers move without a gradient (step counters, moving
averages, codebooks), an embedding with ``max_norm`` rescales its rows, and in a stage in which
nothing is left to train a train function needs something that it can differentiate by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fedma_flwr.protocol import ClientError
from fedma_flwr.structure import PermutationSpec
from fedma_flwr.structure.wrapped_models import under_names

Undo = Callable[[], object]


class LoadedModels:
    """What `load_model` has loaded in a stage.

    Attributes
    ----------
    movable : set of str
        Settled tensors that may change by themselves: they are put back.
    """

    def __init__(self) -> None:
        self.movable: set[str] = set()
        self._models: WeakSet[nn.Module] = WeakSet()
        self._used = False
        self._eager = ExitStack()

    def __bool__(self) -> bool:
        return self._used

    def add(self, model: nn.Module, movable: Set[str], names: Mapping[str, Any]) -> None:
        """Note a model, and which of its tensors may change, to be known by the given names."""
        self._used = True
        self._models.add(model)
        self.movable.update(under_names(dict.fromkeys(movable), names))

    def run_eagerly(self) -> None:
        """Let compiled models run as they are written: a compiler would pass over hooks."""
        if hasattr(torch.compiler, "set_stance"):
            self._eager.enter_context(torch.compiler.set_stance("force_eager"))

    def close(self) -> None:
        """Let compiled models run compiled again."""
        self._eager.close()

    @property
    def nothing_left_to_train(self) -> bool:
        """Whether no parameter of the models that are still there requires gradients."""
        models = list(self._models)
        return bool(models) and not any(p.requires_grad for m in models for p in m.parameters())


_LOADED: ContextVar[LoadedModels | None] = ContextVar("_LOADED", default=None)


@contextmanager
def watching() -> Iterator[LoadedModels]:
    """Within this context, `load_model` notes what it loads."""
    loaded = LoadedModels()
    token = _LOADED.set(loaded)
    try:
        yield loaded
    finally:
        _LOADED.reset(token)
        loaded.close()


def in_stage() -> bool:
    """Whether a train function works for a stage, whose reply `fedma_mod` is going to check."""
    return _LOADED.get() is not None


def note_loaded(
    model: nn.Module, movable: Set[str], names: Mapping[str, Any], *, hooked: bool = False
) -> None:
    """See `LoadedModels`; nothing outside of a stage."""
    loaded = _LOADED.get()
    if loaded is not None:
        loaded.add(model, movable, names)
        if hooked:
            loaded.run_eagerly()


def moving_tensors(model: nn.Module) -> set[str]:
    """Names of what a forward pass may change: buffers, and tables that rescale their rows."""
    found = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for path, module in model.named_modules(remove_duplicate=False):
        if getattr(module, "max_norm", None) is not None:
            found.update(f"{path}.{n}" if path else n for n, _ in _own_parameters(module))
    return found


def put_back(
    spec: PermutationSpec,
    settled: Sequence[str],
    before: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    loaded: LoadedModels,
) -> dict[str, Tensor]:
    """What a train function replied, with settled values in place of those that moved.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    settled : sequence of str
        The settled tensors.
    before, trained : mapping of str to Tensor
        The model before and after training.
    loaded : LoadedModels
        What `load_model` has noted meanwhile.

    Raises
    ------
    ClientError
        If a settled parameter was changed; the message says how that comes about.
    """
    result = dict(trained)
    for name in settled:
        if name in trained and torch.equal(trained[name], before[name]):
            continue
        moves = name in loaded.movable or name in spec.statistics
        if not moves and before[name].is_floating_point():
            raise ClientError(_LATER.format(name) if loaded else _NOT_LOADED.format(name))
        result[name] = before[name]
    return result


_NOT_LOADED = (
    "The settled tensor {!r} was changed by the train function: build the model with "
    "`load_model(Net(), msg)`, which resizes it and freezes what is settled."
)
_LATER = (
    "The settled tensor {!r} was changed by the train function. `load_model` froze it; after that "
    "it was unfrozen (as by model.requires_grad_(True)), overwritten, tied to another, or the "
    "reply is of another model. Freeze, unfreeze, build and tie before load_model, and leave what "
    "does not require gradients after it as it is. If it is the client's own (FedBN, FedPer), name "
    "it in the strategy's `personal`, and do not restore it by hand."
)


def _own_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(recurse=False, remove_duplicate=False)


def has_hooks(model: nn.Module) -> bool:
    """Whether something of a model's is kept by hooks."""
    keepers = (_BufferKeeper, _ParameterKeeper)
    return any(
        isinstance(hook, keepers)
        for module in model.modules()
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    )


def keep_buffers(model: nn.Module, settled: Set[str]) -> list[Undo]:
    """Give settled buffers their values back after every forward pass of their module.

    The model is trained with what is settled, not with what its passes would make of it. A buffer
    is replaced, not overwritten: the pass's derivatives may need what it had.

    Returns
    -------
    list of callables
        They undo it.
    """
    undo: list[Undo] = []
    for path, module in model.named_modules():
        dot = f"{path}." if path else ""
        kept = {
            name: buffer.detach().clone()
            for name, buffer in module.named_buffers(recurse=False)
            if f"{dot}{name}" in settled
        }
        if kept:
            undo.append(module.register_forward_hook(_BufferKeeper(kept)).remove)
    return undo


class _BufferKeeper:
    """Forward hook that gives a module's buffers their values back."""

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self._kept = dict(kept)
        self._there: dict[str, tuple[Tensor, int]] = {}  # what was put back last, untouched

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        for name, value in self._kept.items():
            buffer = module._buffers.get(name)
            there, version = self._there.get(name, (None, 0))
            if buffer is None or (buffer is there and buffer._version == version):
                continue
            buffer = value.to(buffer.device, copy=True)
            module._buffers[name] = buffer
            self._there[name] = (buffer, buffer._version)


def keep_parameters(model: nn.Module, parameters: Set[nn.Parameter]) -> list[Undo]:
    """Let a loss be differentiated by settled parameters, and keep them as they are.

    For stages in which nothing is left to train. Gradients are zero; what an optimizer does all
    the same (weight decay) is undone before the next pass.

    Returns
    -------
    list of callables
        They undo it.
    """
    undo: list[Undo] = []
    kept = {parameter: parameter.detach().clone() for parameter in parameters}
    for parameter in kept:
        parameter.requires_grad_(True)
        undo.append(parameter.register_hook(torch.zeros_like).remove)
    for module in model.modules():
        own = {p: kept[p] for _, p in _own_parameters(module) if p in kept}
        if own:
            undo.append(module.register_forward_pre_hook(_ParameterKeeper(own)).remove)
    return undo


class _ParameterKeeper:
    """Forward pre-hook that gives a module's parameters their values back."""

    def __init__(self, kept: Mapping[nn.Parameter, Tensor]) -> None:
        self._kept = dict(kept)

    def __call__(self, module: nn.Module, args: Any) -> None:
        with torch.no_grad():
            for parameter, value in self._kept.items():
                value = value.to(parameter.device)
                # A write would spoil the derivatives of an earlier call in the same pass.
                if not torch.equal(parameter, value):
                    parameter.copy_(value)

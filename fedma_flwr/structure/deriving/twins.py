"""Networks in pairs: target networks, teachers, running averages of weights, saved originals.

What couples such a pair is no part of `forward`: ``target.mul_(m).add_((1 - m) * online)``. Units
of both must then keep one order, or the update would mix units that have nothing in common.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fedma_flwr.structure.deriving.atoms import unify
from fedma_flwr.structure.deriving.gradient_reach import without_gradient
from fedma_flwr.structure.deriving.trace import Trace
from fedma_flwr.structure.model_copies import tensors_of

Pair = tuple[str, str]  # names of tensors, or paths of modules
# Matrices that a module must have to be a network: single layers are alike by accident.
_NETWORK = 2


def unite_twins(model: nn.Module, examples: Sequence[Any], trace: Trace) -> set[str]:
    """Require that the units of networks in pairs are permuted alike.

    Parameters
    ----------
    model : nn.Module
        A private copy, as its code has built it.
    examples : list of (tuple or dict)
        Positional or keyword arguments, one or more times.
    trace : Trace
        What propagation has learned; tensors that `forward` does not reach, but whose twins it
        does, count as used like them.

    Returns
    -------
    set of str
        The tensors that have a parameter for a twin: buffers among them are no constants.

    Notes
    -----
    Two modules are a pair if their tensors have the same names, shapes and values, as copies have,
    or, for networks of which training moves one only, the same names and shapes. Layers of one list
    follow one another, and are no pairs.
    """
    unmoved = set.intersection(*(without_gradient(model, inputs) for inputs in examples))
    found = _Twins(model, trace, unmoved)
    pairs = sorted({*found.by_values(), *found.by_structure()})
    for twin, own in pairs:
        for one, other in zip(trace.axes_of(twin), trace.axes_of(own), strict=True):
            unify(one, other)
        for reached, name in ((own, twin), (twin, own)):
            if trace.is_used(reached) and not trace.is_used(name):
                _use_alike(trace, reached, name)
    return {name for pair in pairs if not trace.buffers.issuperset(pair) for name in pair}


def _use_alike(trace: Trace, reached: str, name: str) -> None:
    """Take a tensor that `forward` does not reach to be used as its twin is."""
    trace.used.setdefault(trace.names[name])
    trace.by_twin.add(trace.names[name])
    own = {
        id(axis): twin
        for axis, twin in zip(trace.axes_of(reached), trace.axes_of(name), strict=True)
    }
    trace.contracted += [own[id(axis)] for axis in trace.contracted if id(axis) in own]


class _Twins:
    def __init__(self, model: nn.Module, trace: Trace, unmoved: set[str]) -> None:
        state = tensors_of(model)
        self.state = {
            name: tensor.detach()
            for name, tensor in state.items()
            if trace.names[name] == name and tensor.is_floating_point()
        }
        self.free = {n for n in self.state if n in unmoved or not trace.is_used(n)}
        frozen = {n for n, tensor in state.items() if not tensor.requires_grad}
        self.still = self.free | (frozen & self.state.keys())
        self.modules = dict(model.named_modules())
        self.paths: set[Pair] = set()  # of pairs of modules that are known

    def by_values(self) -> Iterator[Pair]:
        """Pairs of modules that are copies, and of tensors that are."""
        for twin, own in self._equal():
            suffix = _common_end(twin, own)
            paths = twin[: len(twin) - len(suffix)], own[: len(own) - len(suffix)]
            if not suffix:
                yield from self._flattened(twin, own)
            elif twin in self.still or self._is_network(*paths):
                self.paths.add(paths)
        for twin, own in sorted(self.paths):
            yield from self._under(twin, own)

    def _equal(self) -> Iterator[Pair]:
        """Tensors of equal values that may be twins: of all equal ones those with like names."""
        alike: dict[Any, list[str]] = defaultdict(list)
        for name, tensor in self.state.items():
            if not tensor.is_meta and tensor.numel() > 1 and bool((tensor != tensor.max()).any()):
                alike[tuple(tensor.shape), float(tensor.double().sum())].append(name)
        for names in alike.values():
            for name in names:
                others = [other for other in names if self._may_be_pair(name, other)]
                longest = max((len(_common_end(name, other)) for other in others), default=0)
                for other in others:
                    if len(_common_end(name, other)) == longest:
                        yield name, other

    def _may_be_pair(self, twin: str, own: str) -> bool:
        if twin == own or not torch.equal(self.state[twin], self.state[own]):
            return False
        if twin in self.still:
            moves = own not in self.still or (twin in self.free and own not in self.free)
            return moves and not self._in_one_list(twin, own)
        return twin < own and own not in self.still and not self._in_one_list(twin, own)

    def _in_one_list(self, twin: str, own: str) -> bool:
        """Whether two tensors are in layers that follow one another."""
        if twin in self.free:
            return False  # gradients would pass through the one to what stands before it
        parts = zip(twin.split("."), own.split("."), strict=False)
        return next((a.isdigit() and b.isdigit() for a, b in parts if a != b), False)

    def _is_network(self, twin: str, own: str) -> bool:
        """Whether two modules are copies of one another and have several layers."""
        pairs = list(self._under(twin, own))
        matrices = [name for name, _ in pairs if self.state[name].dim() > 1]
        return len(matrices) >= _NETWORK and all(
            torch.equal(self.state[name], self.state[other]) for name, other in pairs
        )

    def _under(self, twin: str, own: str) -> Iterator[Pair]:
        """Tensors of the same name and shape below two paths, which end with a dot or are empty."""
        for name, tensor in self.state.items():
            other = self.state.get(own + name[len(twin) :])
            if not name.startswith(twin) or other is None or other is tensor:
                continue
            if tensor.shape == other.shape:
                yield name, own + name[len(twin) :]

    def _flattened(self, twin: str, own: str) -> Iterator[Pair]:
        """Copies under other names: all that are named alike but for the dots, or just these."""
        yield twin, own
        if _plain(twin).endswith(_plain(own)):
            start = _plain(twin)[: -len(_plain(own))]
            named = {_plain(name): name for name in self.still}
            for other, tensor in self.state.items():
                name = named.get(start + _plain(other))
                if name and name != other and tensor.shape == self.state[name].shape:
                    yield name, other

    def by_structure(self) -> Iterator[Pair]:
        """Pairs of networks of one class, of which training moves one only."""
        kinds: dict[Any, list[str]] = defaultdict(list)
        for path, module in self.modules.items():
            shapes = tuple((n, tuple(p.shape)) for n, p in module.named_parameters())
            if sum(len(shape) > 1 for _, shape in shapes) >= _NETWORK:
                kinds[type(module), shapes].append(f"{path}." if path else "")
        known = {twin for twin, _ in self.paths}
        for paths in kinds.values():
            still = [path for path in paths if not any(self._moving(path))]
            for twin in still:
                if any(twin.startswith(path) for path in known):
                    continue
                for own in paths:
                    if any(self._moving(own)) and not self._layers(twin, own):
                        known.add(twin)
                        yield from self._under(twin, own)

    def _moving(self, path: str) -> Iterable[str]:
        return (n for n in self.state if n.startswith(path) and n not in self.still)

    def _layers(self, twin: str, own: str) -> bool:
        """Whether two modules are layers of one list, or one of them holds the other."""
        if own.startswith(twin) or twin.startswith(own):
            return True
        return any(self._in_one_list(name, other) for name, other in self._under(twin, own))


def _common_end(one: str, other: str) -> str:
    """The last parts of two names, as far as they agree: ``0.weight``."""
    parts = one.split("."), other.split(".")
    count = 0
    while count < min(map(len, parts)) and parts[0][-1 - count] == parts[1][-1 - count]:
        count += 1
    return ".".join(parts[0][len(parts[0]) - count :]) if count else ""


def _plain(name: str) -> str:
    return name.replace(".", "")

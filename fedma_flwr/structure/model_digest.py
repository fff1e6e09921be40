"""A digest of all that a spec depends on: a model's code and attributes, shapes, and inputs."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fedma_flwr.structure.model_copies import Inputs, examples_of

#: What of a module's attributes is said elsewhere.
_ELSEWHERE = {"_parameters", "_buffers", "_modules"}
#: Code that is known by torch's version, or that no forward pass runs.
_KNOWN = {"torch", "builtins", "typing", "abc", "collections", "numpy"}
_DEPTH = 6  # of objects in attributes


def model_digest(model: nn.Module, example_inputs: Inputs) -> str:
    """A hexadecimal digest; two models with the same one have the same spec.

    It covers the source files of the model's classes and whatever these import of their own
    package, torch's version and this package's derivation, every module's attributes, parameters'
    shapes and how they are tied, buffers' values, and the inputs. Parameters' values do not count.

    Parameters
    ----------
    model : nn.Module
        The model.
    example_inputs : Tensor, tuple, dict, or list of them
        As for `derive_spec`.

    Raises
    ------
    OSError
        If the source of a class is not in a file, as in an interactive session.
    """
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted({*_own_files(), *_source_files(model)}):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for text in _texts(model, example_inputs):
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _own_files() -> list[Path]:
    return list(Path(__file__).parent.rglob("*.py"))


def _source_files(model: nn.Module) -> set[Path]:
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    todo = [cls.__module__ for cls in classes if _package(cls.__module__) not in _KNOWN]
    seen: set[str] = set()
    files = set()
    while todo:
        name = todo.pop()
        if name in seen or name not in sys.modules:
            continue
        seen.add(name)
        source = inspect.getsourcefile(sys.modules[name])
        if source is None or not Path(source).is_file():
            raise OSError(f"the source of {name} is in no file")
        files.add(Path(source))
        todo += [own for own in _imported(sys.modules[name]) if _package(own) == _package(name)]
    return files


def _imported(module: ModuleType) -> Iterator[str]:
    """The modules that what stands in a module comes from."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(name := getattr(value, "__module__", None), str):
            yield name


def _package(name: str) -> str:
    return name.partition(".")[0]


def _texts(model: nn.Module, example_inputs: Inputs) -> Iterator[str]:
    first: dict[int, str] = {}  # of tied tensors
    for path, module in model.named_modules(remove_duplicate=False):
        kind = type(module)
        yield f"{path} {kind.__module__}.{kind.__qualname__} {module.training}"
        for name, parameter in module._parameters.items():
            if parameter is None:
                yield f"{name} none"
                continue
            told = first.setdefault(id(parameter), f"{path}.{name}")
            shape = tuple(parameter.shape)
            yield f"{name} {shape} {parameter.dtype} {parameter.requires_grad} {told}"
        for name, buffer in module._buffers.items():
            yield f"{name} {_text(buffer)} {name in module._non_persistent_buffers_set}"
        attributes = {n: value for n, value in vars(module).items() if n not in _ELSEWHERE}
        yield _text(attributes)
    yield _text(examples_of(example_inputs))


def _text(value: Any, depth: int = 0) -> str:
    """A value in words that are the same in every process; an unknown object's never are."""
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous()
        digest = hashlib.sha256(held.reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"tensor {tuple(value.shape)} {value.dtype} {digest.hexdigest()}"
    if isinstance(value, Mapping):
        return "{" + _list([part for pair in value.items() for part in pair], depth) + "}"
    if isinstance(value, list | tuple):
        return "[" + _list(value, depth) + "]"
    if isinstance(value, set | frozenset):
        return "set" + ",".join(sorted(_text(part, depth + 1) for part in value))
    return _name_of(value) or _object(value, depth)


def _name_of(value: Any) -> str:
    """Of what is known by its name; empty for all else."""
    if isinstance(value, nn.Module):
        return f"module {type(value).__qualname__}"  # it is one of the model's, or unseen by it
    if isinstance(value, FunctionType):
        return f"function {value.__module__}.{value.__qualname__} {value.__code__.co_code.hex()}"
    if isinstance(value, type):
        return f"class {value.__module__}.{value.__qualname__}"
    return ""


def _object(value: Any, depth: int) -> str:
    if depth < _DEPTH and hasattr(value, "__dict__"):
        kind = type(value)
        return f"{kind.__module__}.{kind.__qualname__} {_text(vars(value), depth + 1)}"
    return repr(value)


def _list(values: Iterable[Any], depth: int) -> str:
    return ",".join(_text(part, depth + 1) for part in values)

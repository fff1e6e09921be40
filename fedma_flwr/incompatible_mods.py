"""Flower's mods that cannot work with FedMA's stages: how they are found, and why they cannot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

_PRIVACY = (
    "it clips, or adds noise to, a whole model that goes out and comes back in one message. FedMA "
    "sends parts of a model in several stages, and moments that the mod does not know of"
)
_SECRECY = (
    "under secure aggregation the server sees nothing but sums. FedMA must see each client's units "
    "to match them"
)
#: By a mod's name, as errors and the log show it. A name may begin another one's.
_WHY = {
    "LocalDpMod": _PRIVACY,
    "fixedclipping_mod": _PRIVACY,
    "adaptiveclipping_mod": _PRIVACY,
    "secaggplus_mod": _SECRECY,
    "secagg_mod": _SECRECY,
}
_TRACES = {**{name: name for name in _WHY}, "secagg": "secaggplus_mod"}  # in an error's reason
_FLOWER = "flwr."


def why_not(name: str) -> str:
    """One sentence for the user: which mod, why not, what to do."""
    return (
        f"Flower's {name} cannot be used with FedMA: {_WHY[name]}. Leave the mod out, or use "
        "FedAvg."
    )


def incompatible_mod(reason: str) -> str | None:
    """The mod that an error names."""
    return next((name for trace, name in _TRACES.items() if trace in reason), None)


def mods_around(call_next: Callable[..., Any]) -> str | None:
    """The name of an incompatible mod of Flower's among those around ours; None if there is none.

    Parameters
    ----------
    call_next : callable
        The next mod or the train function, as Flower gives it to ours.
    """
    for module, name in (*_mods_before(), *_mods_after(call_next)):
        if module.startswith(_FLOWER) and name in _WHY:
            return name
    return None


def _mods_before() -> Iterator[tuple[str, str]]:
    """Module and name of the calls that have led here: functions, and objects that are called."""
    frame = sys._getframe(1)  # no public way shows who has called
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
        code: CodeType = frame.f_code
        own = type(frame.f_locals.get("self")).__name__
        yield (
            frame.f_globals.get("__name__", ""),
            own if code.co_name == "__call__" else code.co_name,
        )


def _mods_after(call_next: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Module and name of the mods behind ours; Flower wraps each in a function with two cells."""
    following: Any = call_next
    while following is not None:
        names = getattr(getattr(following, "__code__", None), "co_freevars", ())
        cells = dict(zip(names, getattr(following, "__closure__", None) or (), strict=False))
        if (cell := cells.get("_mod")) is None:
            return
        mod = cell.cell_contents
        named = mod if hasattr(mod, "__name__") else type(mod)
        yield getattr(named, "__module__", ""), named.__name__
        following = cells["_ffn"].cell_contents if "_ffn" in cells else None

"""Complex numbers as pairs of real ones, and Fourier transforms."""

from __future__ import annotations

from fedma_flwr.structure.deriving.atoms import Axes, fixed
from fedma_flwr.structure.deriving.rules.call import Call, rule


@rule("view_as_complex")
def as_complex(call: Call) -> Axes:
    """The last axis holds real and imaginary parts."""
    x = call.axes("self")
    call.pin(x[-1], "its positions are real and imaginary parts")
    return x[:-1]


@rule("view_as_real", "view_as_real_copy")
def as_real(call: Call) -> Axes:
    """Real and imaginary parts on a new last axis."""
    return (*call.axes("self"), fixed(2))


_ONE = "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft"
_TWO = "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_hfft2 fft_ihfft2"
_MANY = "fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_hfftn fft_ihfftn fft_fftshift fft_ifftshift"


@rule(_ONE, _TWO, _MANY)
def fourier(call: Call) -> Axes:
    """Positions are places or frequencies along the axes of the transform."""
    x = list(call.axes("self"))
    dims = call.dims("dim", len(x))
    if call["dim"] is None and call.arguments.get("s") is not None:
        dims = dims[-len(call["s"]) :]
    for dim in dims:
        call.pin(x[dim], "it is transformed to frequencies")
        x[dim] = fixed(call.shape[dim])
    return tuple(x)

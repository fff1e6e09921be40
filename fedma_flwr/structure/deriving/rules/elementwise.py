"""Operators that treat every position alike: any permutation passes through them."""

from __future__ import annotations

from fedma_flwr.structure.deriving.atoms import Axes, free, split, unify
from fedma_flwr.structure.deriving.reshaping import concat
from fedma_flwr.structure.deriving.rules.call import Call, broadcast, rule

_UNARY = """
    abs acos acosh alias alpha_dropout angle asin asinh atan atanh bernoulli bitwise_not ceil celu
    clone contiguous cos cosh deg2rad detach digamma dropout elu erf erfc erfinv exp exp2 expm1
    feature_alpha_dropout feature_dropout fix floor frac gelu hardshrink hardsigmoid hardswish
    hardtanh i0 imag isfinite isinf isnan isneginf isposinf leaky_relu lgamma lift_fresh
    lift_fresh_copy log log10 log1p log2 log_sigmoid log_softmax logical_not logit mish nan_to_num
    neg positive rad2deg real reciprocal relu relu6 round rrelu rsqrt selu sgn sigmoid sign signbit
    silu sin sinc sinh softmax softplus softshrink softsign special_erf special_expit
    special_log_softmax special_softmax sqrt square tan tanh tanhshrink threshold trunc
    _log_softmax _softmax _to_copy conj _conj conj_physical resolve_conj resolve_neg poisson
    _standard_gamma pin_memory
"""
_BROADCAST = """
    add addcdiv addcmul arctan2 atan2 bitwise_and bitwise_or bitwise_xor clamp clamp_max clamp_min
    clip copy copysign div divide eq float_power floor_divide fmax fmin fmod ge greater
    greater_equal gt heaviside hypot le lerp less less_equal logaddexp logaddexp2 logical_and
    logical_or logical_xor lt masked_fill maximum minimum mul multiply ne nextafter not_equal pow
    remainder rsub sub subtract true_divide xlogy __and__ __or__ __xor__ complex polar binomial
    isclose tanh_backward sigmoid_backward threshold_backward gelu_backward silu_backward
    elu_backward softplus_backward hardtanh_backward hardswish_backward hardsigmoid_backward
    leaky_relu_backward mish_backward logit_backward log_sigmoid_backward _softmax_backward_data
    _log_softmax_backward_data softshrink_backward native_dropout_backward
"""
_OVERLOADS = "max.other min.other where.self where.ScalarSelf where.ScalarOther where.Scalar"
_IN_PLACE = [f"{name}_" for name in f"{_UNARY} {_BROADCAST}".split() if name[-1] != "_"]


@rule(_UNARY, _BROADCAST, _OVERLOADS, *_IN_PLACE)
def elementwise(call: Call) -> Axes:
    """All tensor arguments are broadcast against each other."""
    return broadcast(*call.all_axes())


@rule("fill_ zero_ bernoulli_.float detach_ to type_as requires_grad_ rrelu_with_noise")
def keep(call: Call) -> Axes:
    """The first argument's values or type change, its axes do not; others only lend a type."""
    return call.all_axes()[0]


@rule("glu")
def gated_linear_unit(call: Call) -> Axes:
    """The two halves of an axis are multiplied."""
    x = list(call.axes("self"))
    dim = call.dim("dim", len(x))
    half = call.shape[dim]
    value, gate = split(x[dim], [half, half])
    unify(value, gate)
    x[dim] = value
    return tuple(x)


@rule("prelu", "_prelu_kernel")
def prelu(call: Call) -> Axes:
    """One slope for all, or one for each channel."""
    x, (slope, *_) = call.axes("self"), call.axes("weight")
    channels = x[1] if len(x) > 1 else x[0]
    broadcast((channels,), (slope,))
    return x


@rule("zeros", "ones", "full", "empty", "scalar_tensor", "new_zeros", "new_ones", "new_full")
@rule("zeros_like", "ones_like", "full_like", "empty_like", "new_empty", "empty_permuted")
@rule("empty_strided", "new_empty_strided")
def constant(call: Call) -> Axes:
    """All entries are equal (or about to be overwritten): no position is special."""
    return tuple(free(length) for length in call.shape)


@rule("stack", "cat", "concat", "concatenate", "hstack", "vstack", "column_stack")
def join(call: Call) -> Axes:
    """Tensors one after the other along an axis that they have, or that is new."""
    name = str(call.node.target).split(".")[1]
    parts = call.many("tensors")
    if name == "stack":
        dim = call.dim("dim", len(parts[0]) + 1)
        parts = [(*part[:dim], ((),), *part[dim:]) for part in parts]
    elif name == "column_stack":
        parts, dim = [part if len(part) > 1 else (*part, ((),)) for part in parts], 1
    elif name in ("hstack", "vstack"):
        dim = 0 if name == "vstack" or len(parts[0]) == 1 else 1
    else:
        # Empty one-dimensional tensors may be joined to anything.
        parts = [part for part in parts if len(part) == len(call.shape)]
        dim = call.dim("dim", len(call.shape))
    others = broadcast(*[(*part[:dim], ((),), *part[dim + 1 :]) for part in parts])
    joined = concat([part[dim] for part in parts])
    return (*others[:dim], joined, *others[dim + 1 :])


@rule("broadcast_tensors")
def broadcast_tensors(call: Call) -> list[Axes]:
    """All tensors of a list at their common shape."""
    parts = call.many("tensors")
    return [broadcast(*parts)] * len(parts)

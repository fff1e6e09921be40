"""Losses inside a model."""

from __future__ import annotations

from fedma_flwr.structure.deriving.atoms import Axes, unify
from fedma_flwr.structure.deriving.rules.call import Call, broadcast, fixed_like, rule

_NO_REDUCTION = 0


@rule("mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy kl_div soft_margin_loss")
@rule("binary_cross_entropy_with_logits poisson_nll_loss")
def compared(call: Call) -> Axes:
    """Entry by entry, and summed."""
    result = broadcast(*call.all_axes())
    return result if call["reduction"] == _NO_REDUCTION else ()


@rule("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d")
def classified(call: Call) -> Axes:
    """Classes are numbered by the target, or have probabilities there."""
    x, target, weight = call.axes("self"), call.axes("target"), call.optional("weight")
    classes = x[1] if len(x) > 1 else x[0]
    others = (*x[:1], *x[2:]) if len(x) > 1 else ()
    if len(target) == len(x):
        broadcast(x, target)
    else:
        call.pin(classes, "the target numbers its positions")
        broadcast(others, target)
    if weight:
        unify(weight[0], classes)
    return others if call["reduction"] == _NO_REDUCTION else ()


@rule("ctc_loss multi_margin_loss multilabel_margin_loss triplet_margin_loss")
@rule("cosine_embedding_loss margin_ranking_loss hinge_embedding_loss")
def any_loss(call: Call) -> Axes:
    """Everything is pinned."""
    call.pin_all("a loss is taken")
    return fixed_like(call.shape)

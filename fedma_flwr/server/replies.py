"""What a client sends is checked here before it touches the model: no client is trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedma_flwr import protocol, wire
from fedma_flwr.averaging import LARGEST, LARGEST_INTEGER, ClientUpdate
from fedma_flwr.averaging.head_moments import HeadMoments, fault_of, triangle_size
from fedma_flwr.server.decoding import decode
from fedma_flwr.server.head_counts import read_counts
from fedma_flwr.server.messages import error_reason
from fedma_flwr.server.reply_errors import ReplyError, refusing
from fedma_flwr.server.reply_metrics import MOST_METRIC_BYTES, read_metrics, read_weight
from fedma_flwr.structure import PermutationSpec, SpecError

#: Further ConfigRecords of a reply are kept until the end of the round, for all clients.
MOST_EXTRA_BYTES = 2**20
_ARRAY_BYTES = 4096 + 2**10  # of an array beside its numbers: numpy's header, dtype and shape


@dataclass(frozen=True)
class Expected:
    """What a reply must look like.

    Parameters
    ----------
    spec : PermutationSpec
        The model's spec.
    uploads : tuple of str
        The tensors that the stage asked for.
    dtypes : mapping of str to torch.dtype
        Of the global model.
    widths : mapping of str to int
        Widths that the client is known to have: global ones of matched groups, its own of others.
    max_widths : mapping of str to int
        The most units that the client may have in groups whose width is not known.
    token : str
        The state token that the client holds if it did the stage.
    weighted_by_key : str
        Metric that every reply must have.
    wire_dtype : {"float32", "float16", "bfloat16"}
        Precision in which the tensors were asked for.
    moments : (int, int) or None
        Inputs and outputs of the head whose moments were asked for, in place of tensors.
    with_expected : bool
        Whether these may include what the head that was sent expects.
    part_inputs : int
        Inputs of the heads of narrower models, which may stand behind its own.
    several_heads : bool
        Whether the model has several, so that class counts must name theirs.
    """

    spec: PermutationSpec
    uploads: tuple[str, ...]
    dtypes: Mapping[str, torch.dtype]
    widths: Mapping[str, int]
    max_widths: Mapping[str, int]
    token: str
    weighted_by_key: str
    wire_dtype: str = wire.FLOAT32
    moments: tuple[int, int] | None = None
    with_expected: bool = False
    part_inputs: int = 0
    several_heads: bool = False

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest reply that the stage can need; more is not looked at."""
        sizes = [4 * n for n in self._moments()] if self.moments else self._tensors()
        arrays = sum(sizes) + _ARRAY_BYTES * (len(sizes) + 1)
        return arrays + MOST_EXTRA_BYTES + MOST_METRIC_BYTES

    def _moments(self) -> list[int]:
        inputs, outputs = self.moments or (0, 0)
        inputs += self.part_inputs
        return [triangle_size(inputs), (outputs + 1) * (inputs + 1), outputs * (inputs + 1)]

    def _tensors(self) -> list[int]:
        shapes = self.spec.shapes({**self.max_widths, **self.widths})
        forms = (wire.wire_form(self.dtypes[n], shapes[n], self.wire_dtype) for n in self.uploads)
        names = (len(name.encode()) for name in self.uploads)
        return [size + name for (_, size), name in zip(forms, names, strict=True)]


@dataclass(frozen=True)
class Told:
    """What a reply tells beside tensors, for the aggregation of metrics.

    Parameters
    ----------
    metrics : MetricRecord
        The user's metrics.
    records : dict of str to ConfigRecord
        Further records of the train function's.
    names : (str, str)
        What it has called its ArrayRecord and its MetricRecord.
    """

    metrics: MetricRecord
    records: dict[str, ConfigRecord] = field(default_factory=dict)
    names: tuple[str, str] = (protocol.ARRAYS_KEY, protocol.METRICS_KEY)


@dataclass(frozen=True)
class StageReply:
    """A reply that passed.

    Parameters
    ----------
    update : ClientUpdate or None
        None if the client has lost its state and must be sent everything.
    widths : dict of str to int
        The client's widths, as far as they are known now.
    told : Told
        The user's metrics and further records, for their aggregation.
    client_key : str
        What the client calls itself; empty if it does not say.
    ratio : float
        How wide it says that it is, relative to the initial model.
    """

    update: ClientUpdate | None
    widths: dict[str, int]
    told: Told
    client_key: str = ""
    ratio: float = 1.0

    @property
    def metrics(self) -> MetricRecord:
        """The user's metrics."""
        return self.told.metrics

    def weighing(self, update: ClientUpdate, weighted_by_key: str) -> StageReply:
        """The reply with an update of other weights; the same weight for its metrics."""
        metrics = self.metrics
        if update.examples < float(cast(float, metrics[weighted_by_key])):
            metrics = MetricRecord({**metrics, weighted_by_key: update.examples})
        return replace(self, update=update, told=replace(self.told, metrics=metrics))


def read_reply(reply: Message, expected: Expected) -> StageReply:
    """Check a reply and decode it.

    Parameters
    ----------
    reply : Message
        Whatever the client, or the SuperLink in its place, has sent.
    expected : Expected
        What it must look like.

    Returns
    -------
    StageReply
        With finite tensors of the right names, shapes and dtypes.

    Raises
    ------
    ReplyError
        If anything is wrong with it.
    """
    with refusing():
        return _read(reply, expected)


def _read(reply: Message, expected: Expected) -> StageReply:
    if reply.has_error():
        raise ReplyError(error_reason(reply))
    report = protocol.find_report(reply.content)
    if report is None:
        raise ReplyError(f"the reply lacks FedMA's record: {protocol.ADD_THE_MOD}")
    if report.version != protocol.VERSION:
        raise ReplyError(
            f"the client speaks version {report.version} of FedMA's stage protocol, the server "
            f"{protocol.VERSION}: install the same version of fedma-flwr on both"
        )
    if report.status == protocol.LOST:
        return StageReply(None, {}, Told(MetricRecord()))
    if report.status != protocol.DONE or report.holds != expected.token:
        raise ReplyError(f"the reply is for another stage (status {report.status!r})")
    told = read_told(reply.content)
    arrays, metrics = list(reply.content.array_records.values()), told.metrics
    weight = read_weight(metrics, expected.weighted_by_key)
    counts = read_counts(metrics, expected.spec, several_heads=expected.several_heads)
    if expected.moments is not None:
        inputs, outputs = expected.moments
        joint = inputs + expected.part_inputs
        if protocol.CROSS_KEY in arrays[0] and arrays[0][protocol.CROSS_KEY].shape[-1] == joint + 1:
            inputs = joint
        moments = _read_moments(arrays[0], inputs, outputs, expected.with_expected)
        update = ClientUpdate({}, weight, counts.plain, moments)
        return StageReply(update, {}, told, report.client_key, report.width)
    tensors, widths = _read_arrays(arrays[0], expected)
    update = ClientUpdate(tensors, weight, counts.plain, head_counts=counts.by_tensor)
    return StageReply(update, widths, told, report.client_key, report.width)


def read_told(content: RecordDict) -> Told:
    """The records of a reply beside its arrays.

    Raises
    ------
    ReplyError
        If there is not one ArrayRecord and one MetricRecord, or if further records are too large.
    """
    metrics = read_metrics(content)
    if len(content.array_records) != 1:
        raise ReplyError(
            f"the reply has {len(content.array_records)} ArrayRecords instead of one: return "
            'RecordDict({"arrays": ArrayRecord(model.state_dict()), ...}) from the train function'
        )
    others = {n: r for n, r in content.config_records.items() if n != protocol.FEDMA_KEY}
    if (size := protocol.count_bytes([RecordDict({**others})])) > MOST_EXTRA_BYTES:
        raise ReplyError(
            f"the reply's ConfigRecords have {size} bytes; at most {MOST_EXTRA_BYTES} are taken: "
            "keep large things in context.state"
        )
    return Told(
        metrics, others, (next(iter(content.array_records)), next(iter(content.metric_records)))
    )


def _read_arrays(
    arrays: ArrayRecord, expected: Expected
) -> tuple[dict[str, Tensor], dict[str, int]]:
    if missing := [name for name in expected.uploads if name not in arrays]:
        raise ReplyError(f"the reply lacks the tensors {missing}")
    if extra := [name for name in arrays if name not in expected.uploads]:
        raise ReplyError(f"the reply has tensors that nobody asked for: {extra[:5]}")
    widths = _check_shapes(arrays, expected)
    tensors = {}
    for name in expected.uploads:
        shape, dtype = tuple(arrays[name].shape), expected.dtypes[name]
        tensors[name] = decode(name, arrays[name], dtype, shape, expected.wire_dtype)
        _check_values(name, tensors[name], expected.spec)
    return tensors, widths


def _read_moments(
    arrays: ArrayRecord, inputs: int, outputs: int, with_expected: bool
) -> HeadMoments:
    """Moments of a head with so many inputs and outputs."""
    shapes = {
        protocol.GRAM_KEY: (triangle_size(inputs),),
        protocol.CROSS_KEY: (outputs, inputs + 1),
    }
    if protocol.SQUARES_KEY in arrays:  # of values, no classes; the totals are a row of their own
        shapes[protocol.SQUARES_KEY] = (outputs,)
        shapes[protocol.CROSS_KEY] = (outputs + 1, inputs + 1)
    elif with_expected and protocol.EXPECTED_KEY in arrays:  # private moments have none
        shapes[protocol.EXPECTED_KEY] = (outputs, inputs + 1)
    if set(arrays) != set(shapes):
        raise ReplyError(
            f"the reply has the arrays {sorted(arrays)[:5]} instead of the moments of the head's "
            "inputs: install the same version of fedma-flwr on both"
        )
    found = {n: decode(n, arrays[n], torch.float32, s) for n, s in shapes.items()}
    moments = HeadMoments.of(found, protocol.MOMENTS_PREFIX)
    if fault := fault_of(moments):
        raise ReplyError(f"its moments of the head's inputs are refused: {fault}")
    return moments


def _check_shapes(arrays: ArrayRecord, expected: Expected) -> dict[str, int]:
    """Widths that follow from the declared shapes, before any data is decoded."""
    try:
        # The "meta" device has shapes and no data, so a lie about a shape costs no memory.
        shapes = {name: torch.empty(tuple(arrays[name].shape), device="meta") for name in arrays}
        widths = expected.spec.widths(shapes, known=expected.widths)
    except (SpecError, RuntimeError, TypeError, OverflowError) as error:
        raise ReplyError(str(error)) from error
    for group, width in widths.items():
        if group not in expected.widths and width > expected.max_widths[group]:
            raise ReplyError(
                f"group {group!r} is {width} units wide; at most {expected.max_widths[group]} "
                "are allowed (max_growth)"
            )
    return widths


def _check_values(name: str, tensor: Tensor, spec: PermutationSpec) -> None:
    if not tensor.numel():
        return
    least, most = (float(end) for end in tensor.aminmax())  # NaN if there is one
    if not math.isfinite(least) or not math.isfinite(most):
        raise ReplyError(f"tensor {name!r} is not finite (NaN or infinity)")
    if name in spec.statistics and tensor.dtype.is_floating_point:
        if name in spec.variances and least < 0:
            raise ReplyError(f"tensor {name!r} has negative variances")
        return
    largest = LARGEST if tensor.dtype.is_floating_point else LARGEST_INTEGER
    if max(-least, most) > largest:
        raise ReplyError(f"tensor {name!r} has values beyond {largest:.3g}")

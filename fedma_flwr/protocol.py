"""The stage protocol: the only place that knows a record's keys.

A message to a client carries up to three records: the arrays (under FedAvg's ``arrayrecord_key``),
the user's config (``configrecord_key``) and the instruction of `fedma_mod` (``"fedma"``). A reply
carries the arrays that the stage asked for, the user's metrics, and a report (``"fedma"``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedma_flwr import wire
from fedma_flwr.structure.stages import LOCAL
from fedma_flwr.wire import FLOAT32

VERSION = 2
FEDMA_KEY = "fedma"  # the instruction in a message, the report in a reply
ARRAYS_KEY, METRICS_KEY = "arrays", "metrics"  # what fedma_mod calls the records of its reply
KEPT_ARRAYS_KEY, KEPT_STATE_KEY = "fedma.arrays", "fedma.state"  # in Context.state
COPIES_KEY = "fedma.copies"  # in Context.state: the user's records that hold trained tensors
CLASS_COUNTS_KEY, EPOCHS_KEY = "class-counts", "epochs"  # optional metrics of a train function
SERVER_ROUND_KEY, PROXIMAL_MU_KEY = "server-round", "proximal-mu"  # config of a message
EPOCHS_CONFIG_KEY, LEARNING_RATE_KEY = "local-epochs", "lr"  # what `Stage` reads of it
CLIENT_KEY, PARTITION_KEY = "client-key", "partition-id"  # of a node's config, the first one wins
PARTITIONS_KEY = "num-partitions"  # of a node's config, for the shipped app
CONFIG_KEY, NUM_EXAMPLES_KEY = "config", "num-examples"  # FedAvg's defaults, the shipped app's

HELLO, UPDATE, FULL, EVALUATE = "hello", "update", "full", "evaluate"  # kinds of instruction
DONE, LOST = "done", "lost"  # statuses of a report

ADD_THE_MOD = (
    "make the ClientApp with `ClientApp(mods=[fedma_mod])` (from fedma_flwr import fedma_mod)"
)

GRAM_KEY, CROSS_KEY = "head.gram", "head.cross"  # arrays of a reply with moments

Assignments = dict[str, Tensor]
to_arrays, to_tensors, to_tensor = wire.to_arrays, wire.to_tensors, wire.to_tensor
count_bytes = wire.count_bytes


class ClientError(RuntimeError):
    """A client cannot do what a stage asks; the message says what to change."""


@dataclass(frozen=True)
class Instruction:
    """What the server tells `fedma_mod` in one message.

    Parameters
    ----------
    kind : {"hello", "update", "full", "evaluate"}
        Ask who the client is; send what is new since the state it holds; send everything; send the
        global model to an evaluate function.
    round, stage, stages : int
        Communication round (from 1), stage (from 0), number of stages of a round.
    name : {"local", "retrain", "head"}
        What the stage is for.
    needs, gives : str
        State token that the client must hold, and the one it holds after it has answered.
    settled : tuple of str
        Frozen tensors.
    uploads : tuple of str
        Tensors that the reply must carry.
    estimates : tuple of str
        Running statistics among them that the client estimates anew.
    assignments : dict of str to Tensor
        ``update``: the client's global units of the newly matched groups. ``full``: of all groups
        matched so far in this round.
    widths : dict of str to int
        Global width of each group in `assignments`.
    spec : str
        The spec as JSON (``full`` only); the client keeps it.
    personal : tuple of str
        Tensors that stay with the client (not in an ``update``).
    follows : bool
        Whether the units of a ``full`` or ``evaluate`` message are those that the client's own
        have become: then its personal tensors fit.
    partial : bool
        Whether the client's model has tensors of which the server knows nothing.
    arrays_key : str
        Key of the message's ArrayRecord.
    wire_dtype : {"float32", "float16", "bfloat16"}
        Precision in which the reply's tensors shall cross.
    head_module : str
        Path of the head in a stage that solves it: the reply carries moments of its inputs.
    merged : bool
        Set by `fedma_mod` once it has put the full arrays into the message.
    """

    kind: str
    round: int = 0
    stage: int = 0
    stages: int = 0
    name: str = LOCAL
    needs: str = ""
    gives: str = ""
    settled: tuple[str, ...] = ()
    uploads: tuple[str, ...] = ()
    estimates: tuple[str, ...] = ()
    assignments: Assignments = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    spec: str = ""
    arrays_key: str = ARRAYS_KEY
    wire_dtype: str = FLOAT32
    head_module: str = ""
    merged: bool = False
    version: int = VERSION
    personal: tuple[str, ...] = ()
    follows: bool = False
    partial: bool = False

    def to_record(self) -> ConfigRecord:
        """Encode for the wire; empty values are left out (Flower cannot count an empty list)."""
        values: dict[str, Any] = {
            "version": self.version,
            "kind": self.kind,
            "round": self.round,
            "stage": self.stage,
            "stages": self.stages,
            "name": self.name,
            "needs": self.needs,
            "gives": self.gives,
            "settled": list(self.settled),
            "uploads": list(self.uploads),
            "estimates": list(self.estimates),
            "spec": self.spec,
            "personal": list(self.personal),
            "follows": self.follows or "",
            "partial": self.partial or "",
            "arrays-key": self.arrays_key,
            "wire-dtype": "" if self.wire_dtype == FLOAT32 else self.wire_dtype,
            "head-module": self.head_module,
            "merged": self.merged,
            **_assignment_entries(self.assignments, self.widths),
        }
        return ConfigRecord({key: value for key, value in values.items() if value not in ("", [])})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Instruction:
        """Decode what `to_record` made."""
        values: Mapping[str, Any] = record
        assignments, widths = _read_assignments(record)
        return cls(
            kind=str(values.get("kind", "")),
            round=int(values.get("round", 0)),
            stage=int(values.get("stage", 0)),
            stages=int(values.get("stages", 0)),
            name=str(values.get("name", LOCAL)),
            needs=str(values.get("needs", "")),
            gives=str(values.get("gives", "")),
            settled=tuple(values.get("settled", ())),
            uploads=tuple(values.get("uploads", ())),
            estimates=tuple(values.get("estimates", ())),
            assignments=assignments,
            widths=widths,
            spec=str(values.get("spec", "")),
            personal=tuple(values.get("personal", ())),
            follows=bool(values.get("follows", False)),
            partial=bool(values.get("partial", False)),
            arrays_key=str(values.get("arrays-key", ARRAYS_KEY)),
            wire_dtype=str(values.get("wire-dtype", FLOAT32)),
            head_module=str(values.get("head-module", "")),
            merged=bool(values.get("merged", False)),
            version=int(values.get("version", 0)),
        )


@dataclass(frozen=True)
class Report:
    """What `fedma_mod` tells the server in a reply.

    Parameters
    ----------
    status : {"done", "lost", "hello"}
        The stage was done; the state that the message needed is not there; answer to a hello.
    holds : str
        State token that the client holds now.
    client_key : str
        Answer to a hello: what identifies the client for longer than a node id does.
    """

    status: str
    holds: str = ""
    client_key: str = ""
    version: int = VERSION

    def to_record(self) -> ConfigRecord:
        """Encode for the wire."""
        values: dict[str, Any] = {
            "version": self.version,
            "status": self.status,
            "holds": self.holds,
            CLIENT_KEY: self.client_key,
        }
        return ConfigRecord({key: value for key, value in values.items() if value != ""})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Report:
        """Decode what `to_record` made."""
        return cls(
            status=str(record.get("status", "")),
            holds=str(record.get("holds", "")),
            client_key=str(record.get(CLIENT_KEY, "")),
            version=int(cast(int, record.get("version", 0))),
        )


@dataclass(frozen=True)
class KeptState:
    """What a client keeps between stages, beside its arrays.

    Parameters
    ----------
    token : str
        Names the state: run, round and stage.
    spec : str
        The spec as JSON.
    assignments : dict of str to Tensor
        The client's global units of every group matched so far.
    widths : dict of str to int
        Global width of each group in `assignments`.
    """

    token: str
    spec: str
    assignments: Assignments = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    def to_record(self) -> ConfigRecord:
        """Encode for ``Context.state``."""
        entries: dict[str, Any] = {"token": self.token, "spec": self.spec}
        return ConfigRecord({**entries, **_assignment_entries(self.assignments, self.widths)})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> KeptState:
        """Decode what `to_record` made."""
        assignments, widths = _read_assignments(record)
        return cls(str(record["token"]), str(record["spec"]), assignments, widths)


def hello_content(server_round: int) -> RecordDict:
    """The content of a hello."""
    return RecordDict({FEDMA_KEY: Instruction(HELLO, round=server_round).to_record()})


def stage_content(
    instruction: Instruction,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    configrecord_key: str,
) -> RecordDict:
    """The content of a stage's message; without tensors it has no ArrayRecord."""
    records: dict[str, Any] = {FEDMA_KEY: instruction.to_record()}
    records[configrecord_key] = ConfigRecord(dict(config))
    if tensors:
        records[instruction.arrays_key] = to_arrays(tensors, instruction.wire_dtype)
    return RecordDict(records)


def find_instruction(content: RecordDict) -> Instruction | None:
    """The instruction of a message; None if it is not one of FedMA's stages."""
    record = content.get(FEDMA_KEY)
    return Instruction.from_record(record) if isinstance(record, ConfigRecord) else None


def find_report(content: RecordDict) -> Report | None:
    """The report of a reply; None if no `fedma_mod` has made it."""
    record = content.get(FEDMA_KEY)
    try:
        return Report.from_record(record) if isinstance(record, ConfigRecord) else None
    except (TypeError, ValueError):  # a version that is no number
        return None


def _assignment_entries(assignments: Assignments, widths: Mapping[str, int]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for group, units in assignments.items():
        entries[f"units.{group}"] = wire.units_to_bytes(units, widths[group])
        entries[f"width.{group}"] = int(widths[group])
    return entries


def _read_assignments(record: Mapping[str, Any]) -> tuple[Assignments, dict[str, int]]:
    widths = {
        key.removeprefix("width."): int(value)
        for key, value in record.items()
        if key.startswith("width.")
    }
    assignments = {
        group: wire.units_from_bytes(record[f"units.{group}"], width)
        for group, width in widths.items()
    }
    return assignments, widths

"""The stage protocol: the only place that knows a record's keys.

A message to a client carries up to three records: the arrays (under FedAvg's ``arrayrecord_key``),
the user's config (``configrecord_key``) and the instruction of `fedma_mod` (``"fedma"``). A reply
carries the arrays that the stage asked for, the user's metrics, and a report (``"fedma"``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedma_flwr import reading, unit_records, wire
from fedma_flwr.structure.stages import LOCAL
from fedma_flwr.wire import FLOAT32

VERSION = 3
FEDMA_KEY = "fedma"  # the instruction in a message, the report in a reply
ARRAYS_KEY, METRICS_KEY = "arrays", "metrics"  # what fedma_mod calls the records of its reply
KEPT_ARRAYS_KEY, KEPT_STATE_KEY = "fedma.arrays", "fedma.state"  # in Context.state
SPENT_KEY = "fedma.privacy"  # likewise: what private passes have spent
COPIES_KEY = "fedma.copies"  # in Context.state: the user's records that hold trained tensors
CLASS_COUNTS_KEY, EPOCHS_KEY = "class-counts", "epochs"  # optional metrics of a train function
CLASS_COUNTS_OF = f"{CLASS_COUNTS_KEY}."  # + the head's path, where there are several
SERVER_ROUND_KEY, PROXIMAL_MU_KEY = "server-round", "proximal-mu"  # config of a message
SERVER_EXCHANGE_KEY = "server-exchange"  # likewise: counts on from stage to stage, over all rounds
EPOCHS_CONFIG_KEY, LEARNING_RATE_KEY = "local-epochs", "lr"  # what `Stage` reads of it
CLIENT_KEY, PARTITION_KEY = "client-key", "partition-id"  # of a node's config, the first one wins
PARTITIONS_KEY = "num-partitions"  # of a node's config, for the shipped app
LOCAL_MODELS_KEY, MAX_GROWTH_KEY = "local-models", "max-growth"  # of a node's config: its bounds
WIDTH_KEY = "client-width"  # likewise, and of a report: how wide a narrow client is
CONFIG_KEY, NUM_EXAMPLES_KEY = "config", "num-examples"  # FedAvg's defaults, the shipped app's

HELLO, UPDATE, FULL, EVALUATE = "hello", "update", "full", "evaluate"  # kinds of instruction
DONE, LOST = "done", "lost"  # statuses of a report

ADD_THE_MOD = (
    "make the ClientApp with `ClientApp(mods=[fedma_mod])` (from fedma_flwr import fedma_mod)"
)

#: Arrays of a reply with moments: the third only where asked for, the last only for values.
GRAM_KEY, CROSS_KEY, EXPECTED_KEY = "head.gram", "head.cross", "head.expected"
MOMENTS_PREFIX, SQUARES_KEY = "head.", "head.squares"
Assignments = unit_records.Assignments
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
    head_expected : bool
        Whether these include what the head that is sent expects of the classes.
    merged : bool
        Set by `fedma_mod` once it has put the full arrays into the message.
    parts, own_widths : tuple of dict of str to Tensor, and dict of str to int
        Narrower models whose heads' inputs are measured too: units of the client's widths.
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
    head_expected: bool = False
    merged: bool = False
    version: int = VERSION
    personal: tuple[str, ...] = ()
    follows: bool = False
    partial: bool = False
    parts: tuple[Assignments, ...] = ()
    own_widths: dict[str, int] = field(default_factory=dict)

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
            "head-expected": self.head_expected or "",
            "merged": self.merged,
            **unit_records.to_entries(self.assignments, self.widths),
            **unit_records.parts_to_entries(self.parts, self.own_widths),
        }
        return ConfigRecord({key: value for key, value in values.items() if value not in ("", [])})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Instruction:
        """Decode what `to_record` made; of another version, only its number and kind.

        Long because each entry has a line.

        Raises
        ------
        ValueError
            If a value is not of its type, or out of range; it names the key.
        """
        version, kind = reading.whole(record, "version"), reading.text(record, "kind")
        if version != VERSION:
            return cls(kind, version=version)
        assignments, widths = unit_records.from_entries(record)
        parts, own_widths = unit_records.parts_from_entries(record)
        return cls(
            kind=kind,
            round=reading.whole(record, "round"),
            stage=reading.whole(record, "stage"),
            stages=reading.whole(record, "stages"),
            name=reading.text(record, "name", LOCAL),
            needs=reading.text(record, "needs"),
            gives=reading.text(record, "gives"),
            settled=reading.names(record, "settled"),
            uploads=reading.names(record, "uploads"),
            estimates=reading.names(record, "estimates"),
            assignments=assignments,
            widths=widths,
            spec=reading.text(record, "spec"),
            personal=reading.names(record, "personal"),
            follows=reading.flag(record, "follows"),
            partial=reading.flag(record, "partial"),
            arrays_key=reading.text(record, "arrays-key", ARRAYS_KEY),
            wire_dtype=reading.text(record, "wire-dtype", FLOAT32),
            head_module=reading.text(record, "head-module"),
            head_expected=reading.flag(record, "head-expected"),
            merged=reading.flag(record, "merged"),
            parts=parts,
            own_widths=own_widths,
            version=version,
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
        What identifies the client for longer than a node id does.
    unread : tuple of str
        Entries of the message's config that the train function has never looked at.
    width : float
        How wide the client's model is to be, relative to the initial one; above 0, at most 1.
    """

    status: str
    holds: str = ""
    client_key: str = ""
    unread: tuple[str, ...] = ()
    width: float = 1.0
    version: int = VERSION

    def to_record(self) -> ConfigRecord:
        """Encode for the wire."""
        values: dict[str, Any] = {
            "version": self.version,
            "status": self.status,
            "holds": self.holds,
            CLIENT_KEY: self.client_key,
            "unread": list(self.unread),
            WIDTH_KEY: "" if self.width == 1.0 else self.width,
        }
        return ConfigRecord({key: value for key, value in values.items() if value not in ("", [])})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Report:
        """Decode what `to_record` made."""
        return cls(
            status=reading.text(record, "status"),
            holds=reading.text(record, "holds"),
            client_key=reading.text(record, CLIENT_KEY),
            unread=reading.names(record, "unread"),
            width=reading.ratio(record, WIDTH_KEY),
            version=reading.whole(record, "version"),
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
    size : int
        Bytes that the model had when all of it came, or was trained from weights of its own.
    """

    token: str
    spec: str
    assignments: Assignments = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def to_record(self) -> ConfigRecord:
        """Encode for ``Context.state``."""
        entries: dict[str, Any] = {"token": self.token, "spec": self.spec, "size": self.size}
        return ConfigRecord({**entries, **unit_records.to_entries(self.assignments, self.widths)})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> KeptState:
        """Decode what `to_record` made."""
        assignments, widths = unit_records.from_entries(record)
        size = reading.whole(record, "size")  # an earlier version kept none
        return cls(str(record["token"]), str(record["spec"]), assignments, widths, size)


def find_instruction(content: RecordDict) -> Instruction | None:
    """The instruction of a message; None if it is not one of FedMA's stages."""
    record = content.get(FEDMA_KEY)
    return Instruction.from_record(record) if isinstance(record, ConfigRecord) else None


def find_report(content: RecordDict) -> Report | None:
    """The report of a reply; None if no `fedma_mod` has made it."""
    record = content.get(FEDMA_KEY)
    try:
        return Report.from_record(record) if isinstance(record, ConfigRecord) else None
    except Exception:  # whatever stands in a record that no mod of ours has made
        return None

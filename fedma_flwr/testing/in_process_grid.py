"""A Flower grid that calls a ClientApp directly, in this process: seconds become milliseconds."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedma_flwr.protocol import LOCAL_MODELS_KEY

#: What `InProcessGrid` calls with each message and the client's context.
Intercept = Callable[[Message, Context], Message | None]
#: Node id of client 0, unless `InProcessGrid` is told others.
FIRST_NODE_ID = 100
#: Server and clients are one process: any folder of the one is the other's.
_ANYWHERE = {LOCAL_MODELS_KEY: os.sep}


class InProcessGrid(Grid):
    """Run a ClientApp for several clients in this process.

    Contexts and messages are deep-copied, so that a client's state survives only where it survives
    in Flower's engines: a train function that raises leaves no trace. Only the arithmetic and the
    protocol are exercised here; `flwr run` is the real thing.

    Parameters
    ----------
    app : ClientApp
        The clients' code.
    num_clients : int
        Number of clients; client ``i`` is node ``node_ids[i]`` with ``partition-id`` i.
    run_config : mapping, optional
        What ``context.run_config`` shows.
    node_ids : sequence of int, optional
        Default: 100, 101, ...
    intercept : callable, optional
        Called with each message and the client's context before the app. What it returns is the
        reply in the app's place; None lets the app answer. It may raise, and may change the
        context (a client that loses its state).

    Attributes
    ----------
    contexts : dict of int to Context
        Every node's context as the last message has left it.

    Examples
    --------
    A round of three clients, of which the last never answers:

    >>> def lost(message, context):
    ...     if context.node_config["partition-id"] == 2:
    ...         raise SilentError
    >>> grid = InProcessGrid(app, num_clients=3, intercept=lost)
    >>> strategy = FedMA(model=model, example_inputs=(inputs,), fraction_evaluate=0.0)
    >>> result = strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=1)
    >>> {exchange.answered for exchange in strategy.history}
    {2}
    """

    #: Nobody answers later: whoever has not answered when all is pushed is silent.
    replies_at_once = True

    def __init__(
        self,
        app: ClientApp,
        num_clients: int,
        run_config: UserConfig | None = None,
        *,
        node_ids: Iterable[int] | None = None,
        intercept: Intercept | None = None,
    ) -> None:
        # Flower refuses to make messages outside a run.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.app = app
        self.intercept = intercept
        ids = list(node_ids or range(FIRST_NODE_ID, FIRST_NODE_ID + num_clients))
        self.contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": index, "num-partitions": num_clients, **_ANYWHERE},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for index, node in enumerate(ids)
        }
        self._replies: dict[str, Message] = {}
        self._sent = 0

    def set_run(self, run: Run) -> None:
        """Nothing to set: there is one run."""

    @property
    def run(self) -> Run:
        """There is no Flower run behind this grid."""
        raise RuntimeError("An in-process grid has no run.")

    def create_message(self, *args: object, **kwargs: object) -> Message:
        """Deprecated in Flower, not offered here."""
        raise RuntimeError("Make a Message directly.")

    def get_node_ids(self) -> list[int]:
        """All nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run every message to its end."""
        ids = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"message-{self._sent}"
            reply = self._answer(message)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
            ids.append(message.metadata.message_id)
        return ids

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        context = copy.deepcopy(self.contexts[node])
        received = copy.deepcopy(message)
        try:
            reply = self.intercept(received, context) if self.intercept else None
            reply = self.app(received, context) if reply is None else reply
        except SilentError:
            return None
        except Exception as error:  # as Flower reports what a ClientApp raises
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=received)
        self.contexts[node] = context
        return copy.deepcopy(reply)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are there."""
        return [self._replies.pop(key) for key in list(message_ids) if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push, then pull."""
        return self.pull_messages(self.push_messages(messages))


class SilentError(Exception):
    """Raised by an interceptor: the client never answers."""

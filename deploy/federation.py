"""A SuperLink and SuperNodes on loopback, with TLS and node authentication, as on real hosts."""

from __future__ import annotations

import json
import shutil
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deploy.certificates import LOOPBACK, NodeKey, make_node_key, make_server_files
from simulations import processes
from simulations.commands import HOST, Config, FlowerCommands, free_ports, wait_until_healthy
from simulations.programs import Program, StoppedAtTheEnd

CONNECTION = "deploy"
START_SECONDS = 90.0
ACTIVE = "SuperNode ID: "  # what a SuperNode says once the SuperLink has let it in


class Federation(StoppedAtTheEnd):
    """A SuperLink and its SuperNodes that live as long as the `with` block.

    Parameters
    ----------
    folder : Path
        Takes all that is written: certificates, keys, each program's FLWR_HOME and log.
    num_nodes : int
        SuperNodes. Node ``i`` has the client key ``node-i`` and the share ``i`` of the data.

    Attributes
    ----------
    superlink : Program
        The SuperLink; its database outlives it, so that it can be started again.
    nodes : list of Program
        The SuperNodes.

    Examples
    --------
    >>> with Federation(Path("outputs/deploy"), num_nodes=3) as federation:
    ...     federation.run(app, {"num-server-rounds": 2}, log=Path("run.log"))
    """

    def __init__(self, folder: Path, num_nodes: int) -> None:
        if num_nodes < 1:
            raise ValueError(f"num_nodes was {num_nodes}; it must be at least 1")
        self.folder = folder.resolve()
        self.num_nodes = num_nodes

    def _prepare(self) -> None:
        for name in ("certificates", "keys"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self._files = make_server_files(self.folder / "certificates", LOOPBACK)
        self._keys = [self.make_key(f"node-{index}") for index in range(self.num_nodes)]
        self.port, *ports = free_ports(1 + self.num_nodes)
        self.address = f"{HOST}:{self.port}"
        self.commands = FlowerCommands(
            self.folder / "user", CONNECTION, self.address, self._files.ca
        )
        self.superlink = Program(self._superlink_command(), self.folder / "superlink")
        self.superlink.forget()
        self._made: list[Program] = []
        self.nodes = [
            self.make_node(index, key, port)
            for index, (key, port) in enumerate(zip(self._keys, ports, strict=True))
        ]

    def _start(self) -> None:
        self.start_superlink()
        self._in_parallel(self.register, self._keys)
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_until_it_says(ACTIVE, START_SECONDS)

    def _superlink_command(self) -> list[str]:
        files = self._files
        return [
            "flower-superlink",
            *("--host", HOST, "--port", str(self.port)),
            *("--ssl-ca-certfile", str(files.ca)),
            *("--ssl-certfile", str(files.certificate)),
            *("--ssl-keyfile", str(files.key)),
            "--enable-supernode-auth",
            *("--database", str(self.folder / "superlink" / "state.db")),
            "--disable-runtime-dependency-installation",
        ]

    def make_node(
        self, index: int, key: NodeKey | None, port: int, client_key: str = ""
    ) -> Program:
        """A SuperNode that is not started yet.

        Parameters
        ----------
        index : int
            Its share of the data.
        key : NodeKey or None
            By which the SuperLink knows it; None: no key.
        port : int
            For its own processes, on loopback.
        client_key : str (default: "")
            By which FedMA knows the client; "": the name of the key's file.
        """
        name = "no-key" if key is None else key.private.name
        told = f"partition-id={index} num-partitions={self.num_nodes}"
        command = [
            "flower-supernode",
            *("--superlink", self.address, "--root-certificates", str(self._files.ca)),
            *("--host", HOST, "--port", str(port)),
            *("--node-config", f"client-key={json.dumps(client_key or name)} {told}"),
        ]
        if key is not None:
            command += ["--auth-supernode-private-key", str(key.private)]
        node = Program(command, self.folder / name)
        node.forget()
        self._made.append(node)
        return node

    def make_key(self, name: str) -> NodeKey:
        """A new key; a node with it is let in once it is registered."""
        return make_node_key(self.folder / "keys", name)

    def register(self, key: NodeKey) -> None:
        """Tell the SuperLink to let the node with this key in."""
        self.commands.ask("supernode", "register", str(key.public))

    def start_superlink(self) -> None:
        """Start the SuperLink, also again, and wait until it answers over TLS."""
        process = self.superlink.start()
        trust = ssl.create_default_context(cafile=str(self._files.ca))
        wait_until_healthy(self.port, process, self.superlink.log, trust)

    def run(
        self,
        app: Path,
        run_config: Config,
        *,
        log: Path,
        result: Path | None = None,
        while_running: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Run a Flower app to its end; see `FlowerCommands.run`."""
        return self.commands.run(
            app, run_config, log=log, result=result, while_running=while_running
        )

    def stop(self) -> None:
        """Stop all SuperNodes, then the SuperLink; nothing of them is left."""
        self._in_parallel(Program.stop, self._made)
        self.superlink.stop()

    def processes(self) -> list[int]:
        """The ids of all processes that are alive, also of nodes that were made later."""
        homes = [self.commands.home, *(program.home for program in [self.superlink, *self._made])]
        markers = (f"FLWR_HOME={home}" for home in homes)
        return [pid for marker in markers for pid in processes.members(processes.groups(marker))]

    @staticmethod
    def _in_parallel(function: Callable[[Any], None], arguments: list[Any]) -> None:
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(function, arguments))

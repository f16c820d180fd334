"""Weight updates: how a rollout server gets the trainer's weights, and the proof that it has them.

What it is: one interface with two backends. `FolderSync` writes safetensors files where the server
reads them: any machine with a shared folder, CPU and GPU. `NcclSync` broadcasts from GPU to GPU by
vLLM's own weight transfer. Both pause the server around an update and record its version.
`check_agreement` then scores a fixed probe on both sides: a difference ends the run, because a
policy that learns from another policy's samples fails silently.

    sync.push(ModelWeights(model), version)
    check_agreement(server, probe_ids, score_tokens(model, probe_ids), version=version)
    sampler.set_version(version)

What it leaves out: the server's side (`rlroute.rollout.vllm_server`, `vllm_worker`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlroute.rollout.rollout_server import RolloutServer
from rlroute.rollout.weight_folder import SHARD_BYTES, write_update
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from torch import Tensor

UPDATE = "update-"  # how the folder of an update is called, before its number
TOLERANCE = 1e-3  # float32 on both sides; bfloat16 differs by 0.1 and more at single tokens


class WeightSync(Protocol):
    """Replaces the weights of a rollout server."""

    def push(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Send all weights; return when the server samples from them.

        Every process of a sharded trainer calls this with its own view of the same weights.
        """


class FolderSync:
    """Updates through files in `folder`, the one that the server was started with.

    Only the process with `is_sender` writes and talks to the server; the others read the weights
    along, so that gathering works. An update's files are removed once they are loaded.
    """

    def __init__(
        self,
        server: RolloutServer,
        folder: Path,
        *,
        shard_bytes: int = SHARD_BYTES,
        is_sender: bool = True,
    ) -> None:
        self._server = server
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._is_sender = is_sender
        if is_sender:  # what a run that was killed left takes memory in /dev/shm
            for pattern in (f"{UPDATE}*", f".{UPDATE}*"):
                for path in folder.glob(pattern):
                    shutil.rmtree(path)

    def push(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write the weights, then have the server load them.

        Raises:
            RLRouteError: the server does not answer or refuses; it stays paused then.
        """
        if not self._is_sender:
            _read_along(weights)
            return
        name = f"{UPDATE}{version:08}"
        write_update(self._folder, name, weights, shard_bytes=self._shard_bytes)
        try:
            with self._server.update(version):
                self._server.start_weight_update()
                self._server.update_weights({"folder": name})
                self._server.finish_weight_update()
        finally:
            shutil.rmtree(self._folder / name)


class NcclSync:
    """Updates from GPU to GPU by vLLM's `nccl` weight transfer.

    `address` and `port` are where the trainer's first process can be reached by the server's
    workers; `rank` is the trainer's process, of which 0 sends. vLLM must be installed beside the
    trainer, in the server's version (the interface is that of vLLM 0.32).

    Raises:
        RLRouteError: the port or the rank is out of range, vllm is not installed, or there is no
            GPU.
    """

    def __init__(self, server: RolloutServer, *, address: str, port: int, rank: int = 0) -> None:
        if not 0 < port < 2**16:
            raise RLRouteError(f"port {port}: must be from 1 to 65535")
        if rank < 0:
            raise RLRouteError(f"rank {rank}: must be 0 or more")
        try:
            from vllm.distributed import weight_transfer
        except ModuleNotFoundError:
            raise RLRouteError(
                "vllm is not installed beside the trainer: updates by nccl need it; install the "
                "server's version, or use updates by folder"
            ) from None
        self._transfer = weight_transfer
        self._server = server
        self._address = address
        self._port = port
        self._rank = rank
        self._engine: Any = None

    def push(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Broadcast the weights; `weights` must be readable again and again.

        Raises:
            RLRouteError: the server does not answer or refuses (it stays paused then), or
                `weights` can be read only once.
        """
        if iter(weights) is weights:
            raise RLRouteError("weights: updates by nccl read them twice; pass ModelWeights")
        if self._rank != 0:
            self._send(weights)
            return
        with self._server.update(version):
            self._send(weights)

    def _send(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Join the server's workers at the first update, and send."""
        source = _Source(weights, self._transfer.ParamMeta)
        if self._engine is None:
            self._engine = self._join(source)
        self._engine.source = source
        self._engine.send_weights()

    def _join(self, source: _Source) -> Any:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        workers = self._server.count_workers() if self._rank == 0 else 0
        info = NCCLTrainerInitInfo(self._address, self._port, 1 + workers, rank=self._rank)
        factory = self._transfer.WeightTransferTrainerFactory
        return factory.trainer_init(info, client=self._server, source=source)


def check_agreement(
    server: RolloutServer,
    token_ids: Sequence[int],
    expected_logps: Sequence[float],
    *,
    version: int,
    tolerance: float = TOLERANCE,
) -> float:
    """Score the probe on the server and return the largest difference from the trainer's log-probs.

    `expected_logps` has one log-probability for each token of the probe but the first
    (`rlroute.rollout.model_weights.score_tokens`).

    Raises:
        RLRouteError: the difference is above `tolerance`, or the server has another version.
    """
    found = server.read_version()
    if found != str(version):
        raise RLRouteError(
            f"the rollout server has the weights of update {found}, not of update {version}"
        )
    logps = server.score(token_ids)
    differences = [abs(a - b) for a, b in zip(logps, expected_logps, strict=True)]
    worst = max(differences)
    if not all(difference <= tolerance for difference in differences):  # NaN is above it too
        raise RLRouteError(
            f"the rollout server's weights differ from the trainer's after update {version}: "
            f"log-probs of the probe differ by {worst:.2g}, allowed is {tolerance:.2g}"
        )
    return worst


class _Source:
    """What vLLM's trainer side reads weights from: what will come, and the weights themselves."""

    def __init__(self, weights: Iterable[tuple[str, Tensor]], describe: Any) -> None:
        self._weights = weights
        self._describe = describe

    def metadata(self) -> list[Any]:
        """Return name, type and shape of each tensor; one more pass over the weights."""
        return [
            self._describe(name, tensor.dtype, tuple(tensor.shape))
            for name, tensor in self._weights
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._weights)


def _read_along(weights: Iterable[tuple[str, Tensor]]) -> None:
    for _ in weights:
        pass

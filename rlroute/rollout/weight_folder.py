"""Weights as a folder of safetensors files: how a trainer leaves an update, how a server reads it.

Both sides know one root folder, for instance in /dev/shm or on a file system that they share; what
travels between them is the name of an update's folder below it. An update appears whole or not at
all (it is written under another name first), names that lead out of the root are refused, and files
of any other kind are never opened, so that nothing that is read can run code.

What it leaves out: the server's HTTP interface (`rlroute.rollout.rollout_server`) and how weights
get from files into a model (`rlroute.rollout.vllm_worker`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlroute.files import atomic_folder
from rlroute.types import RLRouteError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
SHARD_BYTES = 2**30


def write_update(
    root: Path,
    name: str,
    weights: Iterable[tuple[str, Tensor]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write the tensors to files of about `shard_bytes` in the folder `root/name`; return bytes.

    At most one file's worth of tensors is held in memory. An update of that name is replaced.

    Raises:
        RLRouteError: there are no tensors, or a name comes twice.
    """
    total = 0
    seen: set[str] = set()
    with atomic_folder(root / name) as folder:
        shard: dict[str, Tensor] = {}
        shard_size = 0
        shards = 0
        for tensor_name, tensor in weights:
            if tensor_name in seen:
                raise RLRouteError(f"weights: the tensor '{tensor_name}' comes twice")
            seen.add(tensor_name)
            size = tensor.numel() * tensor.element_size()
            if shard and shard_size + size > shard_bytes:
                _write_shard(folder, shards, shard)
                shard, shard_size, shards = {}, 0, shards + 1
            shard[tensor_name] = tensor.detach().cpu().contiguous()
            shard_size += size
            total += size
        if not seen:
            raise RLRouteError("weights: there are no tensors to send")
        _write_shard(folder, shards, shard)
    return total


def find_update(root: Path, name: Any) -> list[Path]:
    """Return the files of the update `name` below `root`, after a look into each header.

    Raises:
        RLRouteError: the name leads out of the root, there is no such folder, it holds no
            safetensors file, or one that is broken.
    """
    import safetensors

    folder = _resolve_below(root, name)
    paths = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    if not paths:
        raise RLRouteError(f"weights: the folder {name} holds no {SUFFIX} file")
    for path in paths:
        _resolve_below(root, f"{name}/{path.name}")  # a link may lead elsewhere
        try:
            with safetensors.safe_open(path, framework="pt"):
                pass
        except (safetensors.SafetensorError, OSError) as error:
            raise RLRouteError(f"weights: {name}/{path.name} cannot be read: {error}") from None
    return paths


def read_tensors(paths: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of some files one by one, on the CPU, a file's in the order of its keys."""
    import safetensors

    for path in paths:
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                yield name, file.get_tensor(name)


def _write_shard(folder: Path, number: int, shard: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(shard, folder / f"shard-{number:05}{SUFFIX}")


def _resolve_below(root: Path, name: Any) -> Path:
    """Return the path `root/name` with all links followed, which must stay below `root`."""
    if not isinstance(name, str) or not name:
        raise RLRouteError("weights: the update must be named by the name of a folder")
    base = root.resolve()
    path = (base / name).resolve()
    if path == base or not path.is_relative_to(base):
        raise RLRouteError(f"weights: {name!r} is not below the folder of updates; it is refused")
    if not path.exists():
        raise RLRouteError(f"weights: there is no {name!r} in the folder of updates")
    return path

"""Inside a vLLM server: a weight-transfer backend called `folder`.

What it is: vLLM's own control routes (`/start_weight_update`, `/update_weights`, ...) hand an
update to the backend that the server was started with. This module adds one that reads safetensors
files from a folder: it needs no GPU and no library of communication, and every worker of a server
with several reads its own part. It is imported in each worker process because the server is started
with `--worker-extension-cls rlroute.rollout.vllm_worker.FolderUpdates` (which
`rlroute.rollout.vllm_server` adds); the root folder travels in `--additional-config`.

Two traps that it takes care of, both on CPUs: linear layers keep a packed copy of their weight, so
that writing into parameters changes nothing (vLLM's layer-wise reload unpacks and packs again); and
an output layer that shares its weight with the embeddings keeps a packed copy too, which that
reload does not renew.

What it leaves out: draft models, quantised models. Imports vllm: never import it in a trainer.
Written against vLLM 0.32.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

from rlroute.rollout.vllm_server import FOLDER_KEY
from rlroute.rollout.weight_folder import find_update, read_tensors
from rlroute.types import RLRouteError

logger = logging.getLogger(f"vllm.{__name__}")  # vLLM prints what is logged below its own name


@dataclass
class FolderInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing needs to be agreed upon before the first update."""


@dataclass
class FolderUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """An update is the name of a folder below the root that the server was started with."""

    folder: str


class FolderEngine(WeightTransferEngine[FolderInit, FolderUpdate]):  # type: ignore[misc]
    """Loads an update from a folder into the model of one worker.

    All is done in `receive_weights`, files are looked at before the model is touched, so that an
    update that is refused leaves the model as it was.
    """

    init_info_cls = FolderInit
    update_info_cls = FolderUpdate
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: FolderInit) -> None:
        """Nothing to do: there is no connection."""

    def start_weight_update(self) -> None:
        """Nothing to do: see `receive_weights`."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Load one update; vLLM's own version waits for an accelerator even where there is none."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FolderUpdate) -> None:
        """Read all tensors of the folder into the model, which must cover all its parameters.

        Raises:
            RLRouteError: the folder is refused (see `find_update`), or parameters are left over.
        """
        began = time.perf_counter()
        root = self.vllm_config.additional_config[FOLDER_KEY]
        paths = find_update(Path(root), update_info.folder)
        expected = {name for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)
        try:
            loaded = self.model.load_weights(read_tensors(paths))
        finally:  # the model must not stay without tensors
            finalize_layerwise_reload(self.model, self.model_config)
        _renew_output_layers(self.model)
        missing = sorted(expected - set(loaded))
        if missing:
            raise RLRouteError(f"weights: {update_info.folder} lacks {', '.join(missing[:5])}")
        seconds = time.perf_counter() - began
        logger.info("Loaded the weights of %s in %.2f s", update_info.folder, seconds)

    def finish_weight_update(self) -> None:
        """Nothing to do: see `receive_weights`."""

    def shutdown(self) -> None:
        """Nothing to release."""


def _renew_output_layers(model: torch.nn.Module) -> None:
    """Pack the weights of output layers again where vLLM keeps a packed copy."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


class FolderUpdates:
    """Named in `--worker-extension-cls`: workers import this module, which adds the backend."""


if "folder" not in WeightTransferEngineFactory._registry:  # a second import would be refused
    WeightTransferEngineFactory.register_engine("folder", FolderEngine)

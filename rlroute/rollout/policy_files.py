"""A saved text policy, ready to write: a checkpoint folder of transformers, model and tokenizer.

It leaves out training (`rlroute.trainers.text_model`): gradients, value heads, adapters.

How to use: `model, tokenizer = load_policy(Path("run/best"), "float32")`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlroute.extras import require
from rlroute.types import RLRouteError


def load_policy(folder: Path, precision: str) -> tuple[Any, Any]:
    """Return model, on the first GPU where there is one, and tokenizer; nothing is downloaded.

    `precision` is that of the weights in memory: float32 or bfloat16.

    Raises:
        RLRouteError: no checkpoint of a causal language model lies there, or a torn one.
    """
    import torch
    from safetensors import SafetensorError

    transformers = require("transformers", "text")
    if not (folder / "config.json").is_file():
        raise RLRouteError(f"{folder}: no policy lies here (config.json is missing)")
    try:
        with hide_progress(transformers.utils.logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, precision),
                local_files_only=True,
                use_safetensors=True,  # no pickle is read
                output_loading_info=True,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise RLRouteError(f"{folder}: the policy cannot be loaded ({error})") from None
    if report["missing_keys"]:
        raise RLRouteError(f"{folder}: the policy lacks {sorted(report['missing_keys'])[0]}")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


@contextmanager
def hide_progress(logging: Any) -> Iterator[None]:
    """Show no progress bar of transformers inside the block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()

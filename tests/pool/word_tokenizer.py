"""A real tokenizer file whose tokens are words, as the fault server counts them."""

from __future__ import annotations

from pathlib import Path


def write_word_tokenizer(folder: Path) -> Path:
    """Write a tokenizer.json that makes one token of each word; return its path."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    tokenizer = Tokenizer(WordLevel({"[unknown]": 0}, unk_token="[unknown]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path

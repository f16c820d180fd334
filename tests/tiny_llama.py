"""A tiny language model for tests: a random Llama of two layers, 300 byte-level tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

TEXTS = ("Question: 1 + 2\nAnswer: 3", "Sort the words: apple, pear")


def save_tiny_llama(
    folder: Path,
    *,
    texts: Sequence[str] = TEXTS,
    vocab_size: int = 300,
    special_tokens: Sequence[str] = (),
    max_position_embeddings: int = 128,
    hidden_size: int = 32,
    layers: int = 2,
    initializer_range: float = 0.5,
) -> None:
    """Save the model and its tokenizer as a checkpoint folder; the same weights every time.

    The tokenizer is trained on `texts`; `special_tokens` stand beside <s> and </s>. Weights as
    large as the default's are far from uniform: the likeliest token is no matter of rounding.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="the extra `local` is absent")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>", *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        **({"additional_special_tokens": list(special_tokens)} if special_tokens else {}),
    )
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_position_embeddings,
        initializer_range=initializer_range,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)

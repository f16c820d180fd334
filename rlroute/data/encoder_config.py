"""The settings of every kind of text encoder, one discriminated union for all recipes.

| kind           | what it is                                     | needs                          |
| -------------- | ---------------------------------------------- | ------------------------------ |
| `tfidf`        | TF-IDF through a truncated SVD (the default)   | train texts                    |
| `features`     | counts and shares of characters, by hand       | train texts                    |
| `word_vectors` | static word vectors of a file or of the texts  | a file, or train texts         |
| `minilm`       | all-MiniLM-L6-v2 from a package                | the extra `minilm`             |
| `path`         | any transformers folder                        | the extra `minilm`             |
| `openai`       | an OpenAI-compatible embeddings endpoint       | the extra `http`, the endpoint |

`features: true` appends the columns of `features` to the vectors of any other kind.

What it leaves out: the encoders themselves (`rlroute.data.encoders` and the files beside it).

How to use: `encoder: {kind: word_vectors, dimension: 128, features: true}` in a recipe.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlroute.config import StrictModel

CORPUS = "corpus"
PositiveInt = Annotated[int, Field(ge=1)]


class TfidfConfig(StrictModel):
    """Settings of the TF-IDF encoder. `dimension` is an upper limit: small corpora give fewer.

    Terms and directions are learnt from at most `fit_texts` distinct train texts, chosen by hash.
    """

    kind: Literal["tfidf"] = "tfidf"
    dimension: PositiveInt = 256
    ngram_range: tuple[int, int] = (1, 2)
    max_vocabulary: PositiveInt = 10_000
    min_documents: PositiveInt = 2
    fit_texts: PositiveInt = 100_000
    features: bool = False

    @model_validator(mode="after")
    def check_ngram_range(self) -> TfidfConfig:
        """Refuse a range that holds no n-gram."""
        if not 1 <= self.ngram_range[0] <= self.ngram_range[1]:
            raise ValueError(f"ngram_range {list(self.ngram_range)}: write [low, high], 1 <= low")
        return self


class FeaturesConfig(StrictModel):
    """Hand-made features; they have no settings (`rlroute.data.hand_features.FEATURE_NAMES`)."""

    kind: Literal["features"] = "features"


class WordVectorsConfig(StrictModel):
    """Static word vectors, pooled over the words of a text.

    `source` is `corpus` (made from the train texts: PPMI and a truncated SVD), a file in the text
    format of GloVe and word2vec, or a .safetensors file with one matrix, whose words stand in the
    file `vocabulary` (a JSON list, a JSON mapping to rows, or one word a line). `pooling: sif`
    weighs a word of probability p by `sif_weight` / (`sif_weight` + p) and takes out the direction
    that all train texts share; `mean` weighs all words alike. The first `max_vocabulary` words of a
    file are read, which are the most frequent ones by custom; of a corpus the most frequent that
    occur `min_count` times. `dimension`, `window` and `min_count` belong to `corpus` alone.
    """

    kind: Literal["word_vectors"] = "word_vectors"
    source: str = CORPUS
    vocabulary: str | None = None
    pooling: Literal["mean", "sif"] = "sif"
    sif_weight: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    max_vocabulary: PositiveInt = 50_000
    dimension: PositiveInt = 128
    window: PositiveInt = 5
    min_count: PositiveInt = 3
    features: bool = False

    @model_validator(mode="after")
    def check_source(self) -> WordVectorsConfig:
        """Refuse settings that this source would not read."""
        tensors = self.source.endswith(".safetensors")
        if tensors != (self.vocabulary is not None):
            fault = "needs" if tensors else "takes no"
            raise ValueError(f"source '{self.source}' {fault} vocabulary")
        fields = type(self).model_fields
        corpus_only = ("dimension", "min_count", "window")
        meant = [name for name in corpus_only if getattr(self, name) != fields[name].default]
        if self.source != CORPUS and meant:
            raise ValueError(f"{meant[0]} belongs to source 'corpus', not to '{self.source}'")
        return self


class MinilmConfig(StrictModel):
    """all-MiniLM-L6-v2, 384 dimensions, from the package of the extra `minilm`."""

    kind: Literal["minilm"] = "minilm"
    max_tokens: PositiveInt = 256
    batch_size: PositiveInt = 32
    features: bool = False


class PathConfig(StrictModel):
    """A model folder, or `hub:owner/name`, which is downloaded when the encoder is first made."""

    kind: Literal["path"] = "path"
    path: str
    max_tokens: PositiveInt = 256
    batch_size: PositiveInt = 32
    features: bool = False


class OpenaiConfig(StrictModel):
    """A model behind an OpenAI-compatible embeddings endpoint.

    `url` is the base that `/embeddings` is appended to. `price` is in USD per million tokens and
    has no default: a server of your own costs 0 only where you say so. `dimension` is the length of
    the model's vectors, and is checked; `shorten: true` asks the server for vectors of that length.
    `api_key_env` NAMES the environment variable of the key; null for servers without one. Of a text
    the first `max_characters` are sent. `timeout_seconds` bounds one attempt.
    """

    kind: Literal["openai"] = "openai"
    url: str
    model: str = Field(min_length=1)
    dimension: PositiveInt
    price: float = Field(ge=0, allow_inf_nan=False)
    api_key_env: str | None = "OPENAI_API_KEY"
    shorten: bool = False
    max_characters: PositiveInt = 16_000
    batch_size: int = Field(default=64, ge=1, le=2048)
    timeout_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    retries: int = Field(default=3, ge=0)
    features: bool = False

    @field_validator("url")
    @classmethod
    def check_url(cls, url: str) -> str:
        """Refuse what is no plain http(s) address; it is not repeated, as it may hold a secret."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http:// or https:// address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query; name the key's api_key_env")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def check_key_name(cls, name: str | None) -> str | None:
        """Refuse what may be the key itself; it is not repeated."""
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("must be the NAME of an environment variable (capitals, digits, _)")
        return name


AnyEncoderConfig = (
    TfidfConfig | FeaturesConfig | WordVectorsConfig | MinilmConfig | PathConfig | OpenaiConfig
)
EncoderConfig = Annotated[AnyEncoderConfig, Field(discriminator="kind")]

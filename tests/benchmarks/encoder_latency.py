"""Time to encode one query, encoders side by side, in milliseconds.

    python tests/benchmarks/encoder_latency.py pocket
    python tests/benchmarks/encoder_latency.py TABLE --repeats 1000 --kinds tfidf,minilm

Each encoder is fitted on the train queries of the table and encodes single queries of its test
split, as a router does. `cpu` is the time of the processor, which other programs do not change.
`minilm` is left out where its extra is not installed. What an encoder costs in USD stands in
`describe()`; all of these cost none.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from rlroute.data.encoder_config import (
    AnyEncoderConfig,
    FeaturesConfig,
    MinilmConfig,
    TfidfConfig,
    WordVectorsConfig,
)
from rlroute.data.encoders import Encoder, fit_encoder
from rlroute.data.table import read_table
from rlroute.types import RLRouteError

CONFIGS: dict[str, AnyEncoderConfig] = {
    "tfidf": TfidfConfig(),
    "features": FeaturesConfig(),
    "tfidf+features": TfidfConfig(features=True),
    "word_vectors": WordVectorsConfig(),
    "minilm": MinilmConfig(),
}


def main() -> None:
    """Print dimension, p50 and p99 of each encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("table", help="folder, or the name of a table that ships")
    parser.add_argument("--repeats", type=int, default=300, help="queries to time")
    parser.add_argument("--kinds", default=",".join(CONFIGS), help="which, with commas between")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = read_table(arguments.table)
    train = [query.text for query in table.select_split("train").queries]
    texts = [query.text for query in table.select_split("test").queries]
    print(f"{len(texts)} test queries of {np.mean([len(text) for text in texts]):.0f} characters")
    print("| encoder | dimension | p50 ms | p99 ms | cpu p50 ms | cpu p99 ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind in arguments.kinds.split(","):
        try:
            encoder = fit_encoder(CONFIGS[kind], train, seed=0)
        except RLRouteError as error:
            print(f"| {kind} | left out: {error} | | | | |")
            continue
        times = measure(encoder, texts, arguments.repeats)
        cells = " | ".join(f"{value:.3f}" for value in times)
        print(f"| {kind} | {encoder.dimension} | {cells} |", flush=True)


def measure(encoder: Encoder, texts: list[str], repeats: int) -> tuple[float, ...]:
    """Return p50 and p99 of the wall clock and of the processor in ms, after some to warm up."""
    for text in texts[: repeats // 10]:
        encoder.encode([text])
    seconds_N2 = []
    for number in range(repeats):
        text = texts[number % len(texts)]
        wall, processor = time.perf_counter(), time.process_time()
        encoder.encode([text])
        seconds_N2.append((time.perf_counter() - wall, time.process_time() - processor))
    quantiles_22 = np.percentile(seconds_N2, [50, 99], axis=0) * 1000
    return tuple(float(value) for value in quantiles_22.T.ravel())


if __name__ == "__main__":
    main()

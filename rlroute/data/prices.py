"""The candidates of a table with their prices: `models.csv`, or the JSON of LLMRouter.

`models.csv` has `model`, `input_usd_per_mtok` and `output_usd_per_mtok` (USD per million tokens),
and may have `usd_per_call`, `kind`, `description`, `context_tokens` and `output_tokens`; other
columns are ignored. A price that is missing is an error, a price of 0 has to be written down.

What it leaves out: what was measured of a candidate (its `Profile`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlroute.data.text_files import iterate_csv, read_header, read_utf8
from rlroute.types import Candidate, CandidateKind, Limits, Prices, RLRouteError

REQUIRED_COLUMNS = ("model", "input_usd_per_mtok", "output_usd_per_mtok")
OPTIONAL_COLUMNS = ("usd_per_call", "kind", "description", "context_tokens", "output_tokens")
KINDS: tuple[CandidateKind, ...] = typing.get_args(CandidateKind)


def read_candidates(path: Path) -> tuple[Candidate, ...]:
    """Read the candidates of `models.csv`, or of LLMRouter's model file if it ends in `.json`.

    Raises:
        RLRouteError: unreadable file, missing column, missing or negative price, a model twice,
            an unknown kind, or a limit that is no positive whole number.
    """
    rows = read_json_rows(path) if path.suffix == ".json" else read_csv_rows(path)
    candidates: dict[str, Candidate] = {}
    for where, row in rows:
        candidate = parse_candidate(where, row)
        if candidate.id in candidates:
            raise RLRouteError(f"{where}: model '{candidate.id}' is listed twice")
        candidates[candidate.id] = candidate
    if not candidates:
        raise RLRouteError(f"{path}: lists no model")
    return tuple(candidates[name] for name in sorted(candidates))


def read_csv_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return ("FILE, line N", row) for every record of a CSV file of models."""
    data = read_utf8(path)
    header = read_header(path, data, REQUIRED_COLUMNS)
    rows = []
    for line, fields in list(iterate_csv(data))[1:]:
        where = f"{path}, line {line}"
        if len(fields) != len(header):
            raise RLRouteError(f"{where}: {len(fields)} values, but {len(header)} columns")
        rows.append((where, dict(zip(header, fields, strict=True))))
    return rows


def read_json_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return LLMRouter's models (name -> input_price, output_price, feature) as rows."""
    try:
        models: Any = json.loads(read_utf8(path))
    except json.JSONDecodeError as error:
        raise RLRouteError(f"{path}, line {error.lineno}: not valid JSON") from None
    if not isinstance(models, dict) or not all(isinstance(m, dict) for m in models.values()):
        raise RLRouteError(f"{path}: must map each model name to an object with its prices")
    names = {
        "input_usd_per_mtok": "input_price",
        "output_usd_per_mtok": "output_price",
        "description": "feature",
    }
    return [
        (
            f"{path}, model '{model}'",
            {"model": model} | {ours: str(entry.get(key, "")) for ours, key in names.items()},
        )
        for model, entry in models.items()
    ]


def parse_candidate(where: str, row: dict[str, str]) -> Candidate:
    """Return the candidate of one row; `where` names file and line in errors."""
    model = row["model"].strip()
    if not model:
        raise RLRouteError(f"{where}: empty model name")
    kind = row.get("kind", "").strip() or "model"
    if kind not in KINDS:
        raise RLRouteError(f"{where}: unknown kind '{kind}' (allowed: {', '.join(KINDS)})")
    per_call = row.get("usd_per_call", "").strip() or "0"
    return Candidate(
        id=model,
        prices=Prices(
            input=parse_price(where, model, "input_usd_per_mtok", row["input_usd_per_mtok"]),
            output=parse_price(where, model, "output_usd_per_mtok", row["output_usd_per_mtok"]),
            per_call=parse_price(where, model, "usd_per_call", per_call),
        ),
        kind=kind,
        description=row.get("description", ""),
        limits=Limits(
            context_tokens=parse_limit(where, "context_tokens", row.get("context_tokens", "")),
            output_tokens=parse_limit(where, "output_tokens", row.get("output_tokens", "")),
        ),
    )


def parse_price(where: str, model: str, column: str, text: str) -> float:
    """Return a price in USD; a blank, unreadable, negative or non-finite one is an error."""
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not math.isfinite(price) or price < 0:
        raise RLRouteError(
            f"{where}: missing price of model '{model}': {column} is '{text}', "
            "must be a number of at least 0"
        )
    return price


def parse_limit(where: str, column: str, text: str) -> int | None:
    """Return a limit in tokens, or None where the cell is blank."""
    if not text.strip():
        return None
    if not text.strip().isdecimal() or int(text) == 0:
        raise RLRouteError(f"{where}: {column} is '{text}', must be a positive whole number")
    return int(text)


def format_candidates(candidates: Sequence[Candidate]) -> str:
    """Return `models.csv` as text; prices are written so that they read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(REQUIRED_COLUMNS + OPTIONAL_COLUMNS)
    for candidate in candidates:
        prices, limits = candidate.prices, candidate.limits
        writer.writerow(
            [
                candidate.id,
                prices.input,
                prices.output,
                prices.per_call,
                candidate.kind,
                candidate.description,
                limits.context_tokens,
                limits.output_tokens,
            ]
        )
    return text.getvalue()

"""Importers: the tables that other projects publish or write, as outcome tables.

- `import_routerbench`: RouterBench's wide CSV, one row per query with the columns `sample_id`,
  `prompt`, `eval_name`, `oracle_model_to_route_to`, and per model `<model>`, `<model>|total_cost`
  and `<model>|model_response`. Costs are taken as they are; tokens are not known.
- `import_llmrouter`: LLMRouter's routing data, JSON Lines with one call per line (`task_name`,
  `query`, `model_name`, `performance`, `input_tokens`, `output_tokens`, ...). Costs are the tokens
  times the prices.

Splits are assigned by a hash of the text, unless the rows have a `split` or (LLMRouter) a folder
holds train and test files. A call that failed is a hole, whatever score its row states.

What it leaves out: the recorded responses, and the label of the best model (it hides the ties).
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlroute.data.prices import read_candidates
from rlroute.data.records import (
    LATENCY,
    Records,
    TextColumn,
    encode_column,
    encode_text,
    parse_numbers,
    read_csv_columns,
)
from rlroute.data.splits import DEFAULT_FRACTIONS, assign_splits
from rlroute.data.table import OutcomeTable, build_table, check_replaceable, write_table
from rlroute.data.text_files import read_header, read_utf8
from rlroute.types import Prices, RLRouteError

Fractions = tuple[float, float, float]

ROUTERBENCH_COLUMNS = ("sample_id", "prompt", "eval_name")
COST_SUFFIX = "|total_cost"
RESPONSE_SUFFIX = "|model_response"
FAILURE_MARKS = ("ERROR", "API Error")
KINDS = ("routerbench", "llmrouter")


def run_import(kind: str, source: Path, prices: Path, out: Path) -> None:
    """Import `source` with the prices in `prices`, write the table to `out`, and say what it holds.

    Raises:
        RLRouteError: unknown kind, a fault of the files, or a folder `out` with other files.
    """
    from rich.console import Console

    if kind not in KINDS:
        raise RLRouteError(f"unknown kind of table '{kind}' (allowed: {', '.join(KINDS)})")
    check_replaceable(out)
    read = import_routerbench if kind == "routerbench" else import_llmrouter
    table = read(source, prices)
    write_table(table, out)
    holes = table.present_QK.size - int(table.present_QK.sum())
    Console().print(
        f"{out}: {len(table.queries):,} queries x {len(table.candidates)} candidates, "
        f"{holes:,} without an outcome",
        highlight=False,
        soft_wrap=True,
    )


def import_routerbench(
    csv_path: Path,
    prices_path: Path,
    *,
    fractions: Fractions = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> OutcomeTable:
    """Read RouterBench's wide CSV; `prices_path` is a `models.csv` with a price for each model.

    A model whose score and cost are both blank was not asked. `fractions` and `seed` assign the
    splits where the file has no column `split`.

    Raises:
        RLRouteError: missing columns, or any fault of `rlroute.data.checks`.
    """
    data = read_utf8(csv_path)
    header = read_header(csv_path, data, ROUTERBENCH_COLUMNS)
    models = find_routerbench_models(csv_path, header)
    costs = [model + COST_SUFFIX for model in models]
    given = ["split"] if "split" in header else []
    columns, locate = read_csv_columns(
        csv_path, data, [*ROUTERBENCH_COLUMNS, *models, *costs, *given]
    )
    score_WK, cost_WK = (
        np.stack([parse_numbers(columns[name], name, locate) for name in names], axis=1)
        for names in (models, costs)
    )
    row_N, model_N = np.nonzero(~(np.isnan(score_WK) & np.isnan(cost_WK)))
    prompts = parse_prompts(encode_column(columns["prompt"], "prompt", locate))
    if given:
        split = encode_column(columns["split"], "split", locate)
    else:
        splits = encode_text(assign_splits(prompts.values, fractions, seed).tolist())
        split = TextColumn(splits.codes_N[prompts.codes_N], splits.values)
    per_row = {
        "query_id": encode_column(columns["sample_id"], "sample_id", locate),
        "task": encode_column(columns["eval_name"], "eval_name", locate),
        "query": prompts,
        "dataset": encode_text(["routerbench"] * len(columns)),
        "split": split,
    }
    text = {
        name: TextColumn(column.codes_N[row_N], column.values) for name, column in per_row.items()
    }
    text["model"] = TextColumn(model_N, tuple(models))
    unknown_N = np.full(len(row_N), np.nan, dtype=np.float32)
    numbers = dict.fromkeys(("prompt_tokens", "completion_tokens", LATENCY), unknown_N)
    numbers |= {"score": score_WK[row_N, model_N], "cost_usd": cost_WK[row_N, model_N]}
    records = Records(
        str(csv_path), text, numbers, lambda n: f"{locate(row_N[n])}, model '{models[model_N[n]]}'"
    )
    name = csv_path.name.split(".")[0]
    return build_table(name, records, read_candidates(prices_path), str(prices_path))


def find_routerbench_models(csv_path: Path, header: list[str]) -> list[str]:
    """Return the models of a wide CSV, each with a score and a cost column.

    Raises:
        RLRouteError: a model lacks one of the two, or there is none.
    """
    models = [name.removesuffix(COST_SUFFIX) for name in header if name.endswith(COST_SUFFIX)]
    responses = [name for name in header if name.endswith(RESPONSE_SUFFIX)]
    needed = [*models, *(name.removesuffix(RESPONSE_SUFFIX) + COST_SUFFIX for name in responses)]
    for name in needed:
        if name not in header:
            raise RLRouteError(
                f"{csv_path}, line 1: missing column '{name}' "
                f"(each model needs '<model>' with its score and '<model>{COST_SUFFIX}')"
            )
    if not models:
        raise RLRouteError(f"{csv_path}, line 1: missing column '<model>{COST_SUFFIX}'")
    return models


def parse_prompts(column: TextColumn) -> TextColumn:
    """Return prompts as plain text: RouterBench writes the messages as a Python list of strings."""
    texts = encode_text(parse_prompt(value) for value in column.values)
    return TextColumn(texts.codes_N[column.codes_N], texts.values)


def parse_prompt(prompt: str) -> str:
    """Return the messages of a prompt joined by line breaks, or the prompt if it is plain text."""
    if not prompt.startswith("["):
        return prompt
    try:
        messages = ast.literal_eval(prompt)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return prompt  # a plain text that happens to start with a bracket (or with thousands)
    if isinstance(messages, list) and all(isinstance(message, str) for message in messages):
        return "\n".join(messages)
    return prompt


@dataclass(frozen=True, slots=True)
class RoutingCall:
    """One line of LLMRouter's routing data, checked; `split` is "" where the data give none."""

    query_id: str
    text: str
    task: str
    model: str
    score: float
    prompt_tokens: float
    completion_tokens: float
    latency_seconds: float
    split: str
    where: str


def import_llmrouter(
    source: Path,
    prices_path: Path,
    *,
    fractions: Fractions = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> OutcomeTable:
    """Read LLMRouter's routing data: a JSON Lines file, or the folder with train and test files.

    `prices_path` is LLMRouter's JSON of models (`input_price` and `output_price` in USD per million
    tokens) or a `models.csv`. Of a folder, `*routing_test*.jsonl` is the test split and
    `*routing_train*.jsonl` is divided into train and val by hash, in the ratio of `fractions`.
    Choices of a multiple-choice query become part of its text. A call whose response reports an
    error and that used no tokens failed, and becomes a hole.

    Raises:
        RLRouteError: missing or mistyped field, or any fault of `rlroute.data.checks`.
    """
    candidates = read_candidates(prices_path)
    prices = {candidate.id: candidate.prices for candidate in candidates}
    calls = [call for path, split in list_routing_files(source) for call in read_calls(path, split)]
    split = assign_missing_splits(calls, fractions, seed, hold_test=source.is_dir())
    text = {
        "query_id": encode_text(call.query_id for call in calls),
        "dataset": encode_text("llmrouter" for _ in calls),
        "task": encode_text(call.task for call in calls),
        "query": encode_text(call.text for call in calls),
        "model": encode_text(call.model for call in calls),
        "split": encode_text(split),
    }
    values = {
        "score": [call.score for call in calls],
        "prompt_tokens": [call.prompt_tokens for call in calls],
        "completion_tokens": [call.completion_tokens for call in calls],
        LATENCY: [call.latency_seconds for call in calls],
        "cost_usd": [compute_call_cost(call, prices, prices_path) for call in calls],
    }
    numbers = {name: np.array(column, dtype=np.float32) for name, column in values.items()}
    records = Records(str(source), text, numbers, lambda row: calls[row].where)
    return build_table(source.name.split(".")[0], records, candidates, str(prices_path))


def list_routing_files(source: Path) -> list[tuple[Path, str]]:
    """Return the routing files with the split that their name gives: "test", "train" or ""."""
    if not source.is_dir():
        return [(source, "")]
    files = [
        (path, split)
        for split in ("train", "test")
        for path in sorted(source.glob(f"*routing_{split}*.jsonl"))
    ]
    if len({split for _, split in files}) < 2:
        raise RLRouteError(
            f"{source}: needs files named *routing_train*.jsonl and *routing_test*.jsonl"
        )
    return files


def read_calls(path: Path, split: str) -> Iterator[RoutingCall]:
    """Yield the calls of a file that did not fail."""
    for number, line in enumerate(read_utf8(path).decode("utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise RLRouteError(f"{where}: not valid JSON") from None
        if not isinstance(row, dict):
            raise RLRouteError(f"{where}: must be a JSON object")
        if not has_failed(row):
            yield parse_call(where, row, split)


def has_failed(row: Mapping[str, Any]) -> bool:
    """Say whether a row records a failed call, which LLMRouter scores 0 at no tokens."""
    response = row.get("response")
    return (
        isinstance(response, str)
        and response.startswith(FAILURE_MARKS)
        and not row.get("token_num")
        and not row.get("output_tokens")
    )


def parse_call(where: str, row: Mapping[str, Any], split: str) -> RoutingCall:
    """Return a row as a call.

    Raises:
        RLRouteError: a field is missing or has the wrong type.
    """
    task, query, model = (get_text(where, row, key) for key in ("task_name", "query", "model_name"))
    text = query + format_choices(row.get("choices"))
    identity = json.dumps([task, text, row.get("ground_truth"), row.get("metric")])
    latency = row.get("response_time")
    return RoutingCall(
        query_id=f"{task}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}",
        text=text,
        task=task,
        model=model,
        score=get_number(where, row, "performance"),
        prompt_tokens=get_number(where, row, "input_tokens"),
        completion_tokens=get_number(where, row, "output_tokens"),
        latency_seconds=np.nan if latency is None else get_number(where, row, "response_time"),
        split=split or str(row.get("split") or ""),
        where=where,
    )


def get_text(where: str, row: Mapping[str, Any], key: str) -> str:
    """Return a field that must be text."""
    value = row.get(key)
    if not isinstance(value, str):
        raise RLRouteError(f"{where}: field '{key}' is missing or no text")
    return value


def get_number(where: str, row: Mapping[str, Any], key: str) -> float:
    """Return a field that must be a number."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RLRouteError(f"{where}: field '{key}' is missing or no number")
    return float(value)


def format_choices(choices: Any) -> str:
    """Return the options of a multiple-choice query as lines, "" where there are none.

    LLMRouter keeps them as JSON inside a string, with the lists `text` and `labels`.
    """
    if isinstance(choices, str):
        try:
            choices = json.loads(choices)
        except json.JSONDecodeError:
            return ""  # free text, which belongs to no option
    if not isinstance(choices, dict):
        return ""
    texts, labels = choices.get("text") or [], choices.get("labels") or []
    return "".join(f"\n{label}. {text}" for label, text in zip(labels, texts, strict=False))


def assign_missing_splits(
    calls: list[RoutingCall], fractions: Fractions, seed: int, *, hold_test: bool
) -> list[str]:
    """Return each call's split: by hash where none is given; with `hold_test`, train is divided."""
    train, val, test = fractions
    if hold_test:
        if train + val <= 0:
            raise RLRouteError(f"split fractions {fractions}: train and val together must exceed 0")
        train, val, test = train / (train + val), val / (train + val), 0.0
    texts = encode_text(call.text for call in calls)
    assigned = assign_splits(texts.values, (train, val, test), seed).tolist()
    by_hash = "train" if hold_test else ""
    return [
        assigned[code] if call.split == by_hash else call.split
        for call, code in zip(calls, texts.codes_N.tolist(), strict=True)
    ]


def compute_call_cost(call: RoutingCall, prices: Mapping[str, Prices], source: Path) -> float:
    """Return the cost of a call in USD, from its tokens and the prices of its model."""
    if call.model not in prices:
        raise RLRouteError(f"{call.where}: unknown model '{call.model}': it is not in {source}")
    return prices[call.model].compute_cost(call.prompt_tokens, call.completion_tokens)

"""The one door to questions about histories: the generated world, or a published data set's file.

A recipe says `data: {kind: locomo, path: locomo10.json}`; kinds are generated, locomo, longmemeval
and hotpotqa. No data set is downloaded: a file lies where its authors' licence let the user put it.

What it leaves out: the formats and the world itself. How to use:

    opened = open_memory_data(config)       # opened.data, and opened.generated or None
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from rlroute.memory.base import MemoryData
from rlroute.memory.hotpotqa import HotpotConfig, read_hotpotqa
from rlroute.memory.locomo import LocomoConfig, read_locomo
from rlroute.memory.longmemeval import LongMemEvalConfig, read_longmemeval
from rlroute.memory.world import GeneratedMemory, generate_memory
from rlroute.memory.world_config import GeneratedMemoryConfig

MemoryDataConfig = Annotated[
    GeneratedMemoryConfig | LocomoConfig | LongMemEvalConfig | HotpotConfig,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class OpenedMemory:
    """Data, and the world behind them where they were generated (simulated models need it)."""

    data: MemoryData
    generated: GeneratedMemory | None = None


def open_memory_data(
    config: GeneratedMemoryConfig | LocomoConfig | LongMemEvalConfig | HotpotConfig,
) -> OpenedMemory:
    """Generate the world or read the file.

    Raises:
        RLRouteError: a fault of the file.
    """
    if isinstance(config, GeneratedMemoryConfig):
        generated = generate_memory(config)
        return OpenedMemory(generated.data, generated)
    if isinstance(config, LocomoConfig):
        return OpenedMemory(read_locomo(config))
    if isinstance(config, LongMemEvalConfig):
        return OpenedMemory(read_longmemeval(config))
    return OpenedMemory(read_hotpotqa(config))

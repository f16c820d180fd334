"""From the settings of a world to the world: the one list of worlds that recipes can name.

Worlds that need a library or files of the user import and read them when they are opened.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlroute.worlds.base import ArrayWorld, World
from rlroute.worlds.cascade import CascadeLanes, CascadeWorld
from rlroute.worlds.cascade_table import CascadeConfig
from rlroute.worlds.chain import ChainConfig, ChainLanes, ChainWorld
from rlroute.worlds.dispatch import DispatchWorld
from rlroute.worlds.dispatch_workflows import DispatchConfig
from rlroute.worlds.query_session import QuerySessionLanes, QuerySessionWorld
from rlroute.worlds.query_session_tasks import QuerySessionConfig
from rlroute.worlds.scienceworld import ScienceWorld, ScienceWorldConfig
from rlroute.worlds.textworld import TextWorld, TextWorldConfig
from rlroute.worlds.tool_graph import ToolGraphWorld
from rlroute.worlds.tool_graph_tasks import ToolGraphConfig
from rlroute.worlds.twin_router import TwinRouterConfig, TwinRouterWorld

WorldConfig = Annotated[
    ChainConfig
    | CascadeConfig
    | ToolGraphConfig
    | TextWorldConfig
    | ScienceWorldConfig
    | DispatchConfig
    | TwinRouterConfig
    | QuerySessionConfig,
    Field(discriminator="kind"),
]


def open_world(config: WorldConfig) -> World:
    """Return one lane of the world.

    Raises:
        RLRouteError: a library is missing (the message names the extra), or a file of the user is
            missing or cannot be read.
    """
    if isinstance(config, ChainConfig):
        return ChainWorld(config)
    if isinstance(config, CascadeConfig):
        return CascadeWorld(config)
    if isinstance(config, ToolGraphConfig):
        return ToolGraphWorld(config)
    if isinstance(config, TextWorldConfig):
        return TextWorld(config)
    if isinstance(config, ScienceWorldConfig):
        return ScienceWorld(config)
    if isinstance(config, DispatchConfig):
        return DispatchWorld(config)
    if isinstance(config, QuerySessionConfig):
        return QuerySessionWorld(config)
    return TwinRouterWorld(config)


def open_lanes(config: WorldConfig) -> ArrayWorld | None:
    """Return the world for many lanes at once; None where it is no array world."""
    if isinstance(config, CascadeConfig):
        return CascadeLanes(config)
    if isinstance(config, QuerySessionConfig):
        return QuerySessionLanes(config)
    return ChainLanes(config) if isinstance(config, ChainConfig) else None

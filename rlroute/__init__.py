"""rlroute: reinforcement learning for routing policies.

`from rlroute import Router` loads an exported router, `TextRouter` an exported text policy,
`StepRouter` one that decides step by step, `CascadeRouter` one that looks at answers and stops or
goes on, `TierRouter` one for the tiers of a memory pipeline; everything else is imported from its
own module, so that `import rlroute` stays cheap and needs no training library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlroute.cascade_router import CascadeRouter
    from rlroute.router import Router
    from rlroute.step_router import StepRouter
    from rlroute.text_router import TextRouter
    from rlroute.tier_router import TierRouter

__version__ = "0.1.0"
__all__ = ["CascadeRouter", "Router", "StepRouter", "TextRouter", "TierRouter", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a router on first use (PEP 562): it brings torch, which not every command needs."""
    if name == "Router":
        from rlroute.router import Router

        return Router
    if name == "CascadeRouter":
        from rlroute.cascade_router import CascadeRouter

        return CascadeRouter
    if name == "StepRouter":
        from rlroute.step_router import StepRouter

        return StepRouter
    if name == "TextRouter":
        from rlroute.text_router import TextRouter

        return TextRouter
    if name == "TierRouter":
        from rlroute.tier_router import TierRouter

        return TierRouter
    raise AttributeError(f"module 'rlroute' has no attribute {name!r}")

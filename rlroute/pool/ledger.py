"""Who has paid what: every call is charged an upper bound before it is sent and settled after.

What it is: an account in whole picodollars (1e-12 USD: what one token costs at a price of 1e-6 USD
per million), so that sums of millions of calls are exact. It has three columns:

- spent: what calls are known to have cost, by the usage that their servers reported (or by the
  stated estimate where one reported none);
- uncertain: upper bounds of requests whose bill cannot be known (a timeout after the request was
  sent, a broken body). They may have cost nothing; the caps take it that they cost the bound;
- reserved: upper bounds of the requests that are in flight now.

The promise: spent + uncertain + reserved never passes a cap, as long as no call costs more than
the bound that was reserved for it. A server that charges beyond the bound is charged all the same
(money that is gone is not hidden) and the excess is logged.

What it leaves out: waiting (`rlroute.pool.live` waits for reservations to come back), and prices.

How to use:
    reservation = ledger.reserve(0.02)
    ledger.settle(reservation, 0.0013)
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from rlroute.types import RLRouteError

PICODOLLARS_PER_USD = 10**12

logger = logging.getLogger(__name__)


class BudgetExceeded(RLRouteError):  # noqa: N818 - it ends a run in order, nothing is broken
    """A cap leaves no room for a call.

    `final` is False where room may come back: the reservations of other calls stand in the way.
    """

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


@dataclass(frozen=True, eq=False)
class Reservation:
    """An upper bound in picodollars that is held for one request, and whose budget it is from."""

    picodollars: int
    episode: str


@dataclass
class _Account:
    """The three columns of the run or of one episode, in picodollars, and their cap."""

    name: str
    cap: int | None
    spent: int = 0
    uncertain: int = 0
    reserved: int = 0

    def check_room(self, amount: int) -> None:
        """Raise BudgetExceeded where `amount` more would pass the cap."""
        settled = self.spent + self.uncertain
        if self.cap is None or settled + self.reserved + amount <= self.cap:
            return
        message = (
            f"{self.name} may cost {_to_usd(self.cap):.6f} USD: {_to_usd(self.spent):.6f} spent, "
            f"{_to_usd(self.uncertain):.6f} uncertain, {_to_usd(self.reserved):.6f} reserved leave "
            f"no room for a call of at most {_to_usd(amount):.6f}"
        )
        raise BudgetExceeded(message, final=settled + amount > self.cap)


class Ledger:
    """The accounts of a run and of its episodes; safe to share between threads and tasks.

    Args:
        run_cap_usd: what the run may cost in USD, None for no cap.
        episode_cap_usd: what each named episode may cost in USD, None for no cap.
        already_spent_usd: what earlier starts of the same run have spent.

    Raises:
        RLRouteError: an amount is negative or not finite.
    """

    def __init__(
        self,
        run_cap_usd: float | None = None,
        episode_cap_usd: float | None = None,
        *,
        already_spent_usd: float = 0.0,
    ) -> None:
        self._run = _Account(
            "the run", _convert_cap(run_cap_usd), to_picodollars(already_spent_usd)
        )
        self._episode_cap = _convert_cap(episode_cap_usd)
        self._episodes: dict[str, _Account] = {}
        self._open: set[Reservation] = set()
        self._lock = threading.Lock()

    def reserve(self, upper_bound_usd: float, episode: str = "") -> Reservation:
        """Hold the most that a request can cost, before it is sent.

        Raises:
            BudgetExceeded: the cap of the run, or of the episode, has no room for it.
        """
        reservation = Reservation(to_picodollars(upper_bound_usd, math.ceil), episode)
        with self._lock:
            accounts = self._find_accounts(episode)
            for account in accounts:
                account.check_room(reservation.picodollars)
            for account in accounts:
                account.reserved += reservation.picodollars
            self._open.add(reservation)
        return reservation

    def settle(self, reservation: Reservation, cost_usd: float, uncertain_usd: float = 0.0) -> None:
        """Replace a reservation by what the request cost and by what it may have cost besides.

        Raises:
            ValueError: the reservation was settled before, or is of another ledger.
        """
        cost = to_picodollars(cost_usd)
        uncertain = to_picodollars(uncertain_usd, math.ceil)
        with self._lock:
            if reservation not in self._open:
                raise ValueError("a reservation is settled once, by the ledger that made it")
            self._open.remove(reservation)
            for account in self._find_accounts(reservation.episode):
                account.reserved -= reservation.picodollars
                account.spent += cost
                account.uncertain += uncertain
        excess = cost + uncertain - reservation.picodollars
        if excess > 0:
            logger.warning("a call cost %.9f USD more than its upper bound", _to_usd(excess))

    @property
    def spent_usd(self) -> float:
        """What the calls are known to have cost, in USD."""
        return _to_usd(self._run.spent)

    @property
    def spent_picodollars(self) -> int:
        """The same as a whole number, for sums that must agree exactly."""
        return self._run.spent

    @property
    def uncertain_usd(self) -> float:
        """The most that requests with an unknown bill can have cost, in USD."""
        return _to_usd(self._run.uncertain)

    @property
    def reserved_usd(self) -> float:
        """The upper bounds of the requests in flight, in USD."""
        return _to_usd(self._run.reserved)

    def episode_spent(self, episode: str) -> float:
        """Return what the calls of one episode are known to have cost, in USD."""
        account = self._episodes.get(episode)
        return 0.0 if account is None else _to_usd(account.spent)

    def _find_accounts(self, episode: str) -> tuple[_Account, ...]:
        """Return the accounts that pay: the run's, and the episode's where one is named."""
        if not episode:
            return (self._run,)
        if episode not in self._episodes:
            self._episodes[episode] = _Account(f"episode '{episode}'", self._episode_cap)
        return self._run, self._episodes[episode]


def to_picodollars(usd: float, rounding: Callable[[float], int] = round) -> int:
    """Return an amount as whole picodollars.

    Raises:
        RLRouteError: the amount is negative or not finite.
    """
    if not (math.isfinite(usd) and usd >= 0):
        raise RLRouteError(f"an amount of money must be finite and not negative, not {usd} USD")
    return rounding(usd * PICODOLLARS_PER_USD)


def _convert_cap(cap_usd: float | None) -> int | None:
    """Return a cap in picodollars, rounded down (bounds are rounded up: no call slips through)."""
    return None if cap_usd is None else to_picodollars(cap_usd, math.floor)


def _to_usd(picodollars: int) -> float:
    return picodollars / PICODOLLARS_PER_USD

"""What a model's calls cost, written down so that it is added up over processes; and a budget that is never passed.

Each pool of calls has a line of its own in its model's account. Before a call is sent its upper bound is set aside:
every byte of its prompt a token, every answer as long as it may be. What the server then says it read and wrote takes
the place of the bound; an attempt of which nobody knows what it cost (timed out, broken off) is counted at it. Of a
line the account holds what was spent and a bound that the pool does not pass before it writes again: so whoever is
killed, with calls on their way, counts at most at that bound, and the disk is asked a few hundred times for a budget,
not for each call.

The calls that count are those of the steps of the plan that runs, whichever run or process asked them.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from cai.clients.base import Call, OptionsRequest, Request, ScoreRequest
from cai.clients.endpoints import Trouble
from cai.clients.settings import ApiLimits, Prices
from cai.clients.speaker import Answered, Refused
from cai.errors import CaiError, Incomplete
from cai.files.durable import write_durably
from cai.files.locks import locked
from cai.identity import parse_json

FORMAT = 1
_TURN = 64
"""Tokens that a chat template may put around a turn."""
_READ = 16
"""Tokens that a server may write where only likelihoods are wanted."""
_SLICE = 200
"""A line's bound is raised by at least this part of a budget, which is what a killed process may count too much."""
_PROCESS = f"{socket.gethostname()} {os.getpid()} "
_SECONDS = 1.0
"""How long what was spent may be in memory alone."""


class BudgetSpent(Incomplete):
    """The next call might pass the budget; everything answered is kept."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What attempts cost: ``calls`` were sent and ``answers`` came; ``cost`` is in the currency of the prices."""

    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    cost: float = 0.0
    answers: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, entry.name) + getattr(other, entry.name) for entry in fields(Spent)))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(*(getattr(self, entry.name) - getattr(other, entry.name) for entry in fields(Spent)))

    def within(self, unit: str) -> float:
        """As much of a budget in this unit."""
        if unit == "calls":
            return self.calls
        return self.prompt_tokens + self.tokens if unit == "tokens" else self.cost

    def words(self, currency: str) -> str:
        """``0.0213 USD, 120 calls, 31,204 tokens read and 1,920 written``."""
        cost = f"{self.cost:.4g} {currency}, " if currency and self.cost else ""
        return f"{cost}{self.calls:,} calls, {self.prompt_tokens:,} tokens read and {self.tokens:,} written"


def upper_bound(call: Call, prices: Prices) -> Spent:
    """What a call can cost at most: no tokenizer makes more tokens than bytes."""
    written = call.sampling.max_tokens if isinstance(call, Request) else _READ
    turns = () if isinstance(call, ScoreRequest) else call.messages
    # The text that shows a turn is never shorter than the turn, with whatever belongs to it.
    read = sum(len(repr(turn).encode("utf-8", "replace")) for turn in turns) or len(
        call.prompt.encode("utf-8", "replace")
    )
    if isinstance(call, ScoreRequest):
        read += len(call.continuation.encode("utf-8", "replace"))
    elif isinstance(call, OptionsRequest):
        read += max((len(option.encode("utf-8", "replace")) for option in call.options), default=0)
    return priced(read + _TURN * (len(turns) + 1), written, prices)


def priced(prompt_tokens: int, tokens: int, prices: Prices) -> Spent:
    """One call that read and wrote so many tokens."""
    cost = (prompt_tokens * prices.prompt + tokens * prices.completion) / 1e6
    return Spent(1, prompt_tokens, tokens, cost)


@dataclass(frozen=True, slots=True)
class SpendingLine:
    """What one pool spent for one step, and in the ``unit`` of its budget what it may have spent by now."""

    step: str
    owner: str
    spent: Spent = Spent()
    unit: str = ""
    bound: float = 0.0

    def counted(self, unit: str) -> float:
        """What must be taken as spent."""
        spent = self.spent.within(unit)
        return max(spent, self.bound) if self.unit == unit else spent


def read_lines(path: Path) -> list[SpendingLine]:
    """The lines of a model's account; none where there is no file.

    Raises:
        OSError, ValueError: when it cannot be read as one.
    """
    try:
        raw: Any = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    try:
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}")
        return [SpendingLine(**{**line, "spent": Spent(**line["spent"])}) for line in raw["lines"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"it lacks {error}") from error


def spent_by_others(folder: Path, step: str) -> Spent:
    """What other processes than this one spent for a step, on any model; what cannot be read is left out."""
    spent = Spent()
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            theirs = (line for line in read_lines(path) if not line.owner.startswith(_PROCESS))
            spent = sum((line.spent for line in theirs if line.step == step), spent)
    return spent


class Account:
    """The lines of one model at ``path``: to ``step`` calls are added, ``steps`` are those that count together."""

    def __init__(self, path: Path, step: str, steps: Iterable[str] = ()) -> None:
        self.path = path
        self.step = step
        self.steps = frozenset((step, *steps))
        self.owner = f"{_PROCESS}{os.urandom(4).hex()}"

    def write(self, line: SpendingLine, budget: float | None = None) -> bool:
        """Write the line; with a ``budget`` only where its bound fits beside what the other lines count."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.with_suffix(".lock")):
            others = [other for other in self._lines() if other.owner != self.owner]
            if budget is not None and self._counted(others, line.unit) + line.bound > budget:
                return False
            raw = {"format": FORMAT, "lines": [asdict(each) for each in (*others, line)]}
            write_durably(self.path, json.dumps(raw, indent=1) + "\n")
        return True

    def others(self, unit: str) -> float:
        """What the other lines of these steps count."""
        return self._counted((line for line in self._lines() if line.owner != self.owner), unit)

    def total(self) -> Spent:
        """What was spent for these steps, by all."""
        return sum((line.spent for line in self._lines() if line.step in self.steps), Spent())

    def _counted(self, lines: Iterable[SpendingLine], unit: str) -> float:
        return sum(line.counted(unit) for line in lines if line.step in self.steps)

    def _lines(self) -> list[SpendingLine]:
        try:
            return read_lines(self.path)
        except (OSError, ValueError) as error:
            # What was paid is not known any more: no budget can be kept by guessing.
            raise Incomplete(f"{self.path}: cannot be read as an account ({error}); remove it to begin anew") from error


class Spending:
    """The calls of one pool: what they cost, and whether one more may be sent."""

    def __init__(self, limits: ApiLimits, account: Account | None = None) -> None:
        self._prices = limits.prices
        self._budget = limits.budget_amount
        self._currency = limits.currency
        self._account = account
        self._spent = Spent()
        self._reserved = Spent()
        self._bound = 0.0
        self._error: CaiError | None = None
        self._written = time.monotonic()
        self._closed = False
        self._lock = threading.Lock()

    def reserve(self, call: Call) -> Spent | None:
        """Set a call's upper bound aside; None where the budget might be passed by it."""
        bound = upper_bound(call, self._prices)
        with self._lock:
            try:
                if self._budget is not None and not self._fits(bound):
                    return None
            except (CaiError, OSError) as error:
                # What cannot be written down is not spent.
                said = f"the account cannot be kept ({error})"
                self._error = error if isinstance(error, CaiError) else Incomplete(said)
                return None
            self._reserved += bound
        return bound

    def settle(self, reserved: Spent, answer: Answered) -> None:
        """A call was answered; where the server does not say what it cost, it is counted at its bound."""
        spent = priced(answer.prompt_tokens, answer.tokens, self._prices) if answer.counted else reserved
        self._over(reserved, replace(spent, answers=1))

    def free(self, reserved: Spent) -> None:
        """A call was not taken, and costs nothing but having been sent."""
        self._over(reserved, Spent(calls=1))

    def lost(self, reserved: Spent) -> None:
        """Nobody knows what became of a call."""
        self._over(reserved, reserved)

    def close(self) -> None:
        """Write down what was spent; what is on its way still counts at its bound, and is not settled any more."""
        with self._lock:
            if not self._closed:
                self._close()

    def _close(self) -> None:
        self._closed = True
        if self._account is not None and (self._spent.calls or self._reserved.calls):
            self._spent += self._reserved
            self._reserved = Spent()
            self._bound = self._spent.within(self._budget.unit) if self._budget is not None else 0.0
            with suppress(Incomplete, OSError):  # its bound is written
                self._account.write(self._line())

    def used_up(self, call: Call) -> CaiError:
        """The error that ends a run, once nothing is on its way."""
        if self._error is not None:
            return self._error
        assert self._budget is not None
        unit, amount = self._budget.unit, self._budget.value
        earlier = self._account.others(unit) if self._account is not None else 0.0
        counted = earlier + self._spent.within(unit)
        next_call = upper_bound(call, self._prices).within(unit)
        return BudgetSpent(
            f"the budget of {self._budget} is used up: {_shown(counted)} of {_shown(amount)} {unit} are spent, and the "
            f"next call may take {_shown(next_call)} (this process: {self._spent.words(self._currency)}); raise the "
            "model's `limits.budget` and run the same command again"
        )

    def _fits(self, bound: Spent) -> bool:
        assert self._budget is not None
        unit, amount = self._budget.unit, self._budget.value
        needed = (self._spent + self._reserved + bound).within(unit)
        if needed <= self._bound:
            return True
        if self._account is None:
            return needed <= amount
        before = self._bound
        more_at_once = amount / _SLICE if self._budget.is_money else amount // _SLICE
        for more in (more_at_once, 0.0):
            self._bound = needed + more
            if self._account.write(self._line(), amount):
                self._written = time.monotonic()
                return True
        self._bound = before
        return False

    def _over(self, reserved: Spent, spent: Spent) -> None:
        with self._lock:
            if not self._closed:
                self._add(reserved, spent)

    def _add(self, reserved: Spent, spent: Spent) -> None:
        self._reserved -= reserved
        self._spent += spent
        if self._account is not None and time.monotonic() - self._written > _SECONDS:
            self._written = time.monotonic()
            with suppress(Incomplete, OSError):  # its bound is written
                self._account.write(self._line())

    def _line(self) -> SpendingLine:
        assert self._account is not None
        unit = self._budget.unit if self._budget is not None else ""
        line = SpendingLine(self._account.step, self._account.owner, self._spent, unit)
        return replace(line, bound=max(self._bound, self._spent.within(unit)) if unit else 0.0)


def _shown(amount: float) -> str:
    return f"{amount:,.0f}" if float(amount).is_integer() else f"{amount:.4g}"


def account_for(spending: Spending, reserved: Spent, outcome: Answered | Refused | Trouble | Exception | None) -> None:
    """What an attempt cost; None: it was broken off."""
    if isinstance(outcome, Answered):
        spending.settle(reserved, outcome)
    elif isinstance(outcome, Refused) or (isinstance(outcome, Trouble) and outcome.costs_nothing):
        spending.free(reserved)
    else:
        spending.lost(reserved)

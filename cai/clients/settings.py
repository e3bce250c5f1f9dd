"""How hard a server may be asked: settings of a model behind an API that cannot change its answers."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from pydantic import Field, model_validator

from cai.clients.budget import Amount, parse_budget
from cai.settings import Settings


class GaveUp(str, Enum):
    """What becomes of a call that no attempt got an answer for: asked again by the next run, or counted as dropped."""

    KEEP = "keep"
    DROP = "drop"


class Prices(Settings):
    """What a million tokens cost; ``currency`` is three letters that stand beside the figures, and exchange nothing."""

    prompt: Annotated[float, Field(ge=0)] = 0.0
    completion: Annotated[float, Field(ge=0)] = 0.0
    currency: Annotated[str, Field(pattern="^([A-Z]{3})?$")] = ""


class ApiLimits(Settings):
    """Limits of one model's client. Times are in seconds.

    ``concurrency``, where the user states it, is the number of calls in flight from the beginning, and the most there
    are. Not stated, a run begins with what an earlier one found, or with a guess that rises while throughput does, up
    to the default. Either falls when a server says that it is too many. ``timeout`` is for one attempt from its first
    byte sent to its last byte received, ``connect`` for reaching the server, ``deadline`` for a call with all its
    attempts. Where nothing comes but refusals as too many, the run ends after ``patience``, to be gone on with later.
    ``budget`` is the most that the steps of a plan may spend on this model, over all their runs and processes:
    ``20 USD`` by the prices, ``3M tokens`` or ``2000 calls``. A run ends before it is passed (exit code 3), and goes on
    when it is raised.
    """

    concurrency: Annotated[int, Field(ge=1, description="most calls in flight, over all servers of the model")] = 256
    timeout: Annotated[float, Field(gt=0, description="seconds for one attempt, its whole answer included")] = 300.0
    connect: Annotated[float, Field(gt=0, description="seconds to reach a server")] = 15.0
    deadline: Annotated[float, Field(gt=0, description="seconds for a call with all its attempts")] = 3600.0
    patience: Annotated[
        float, Field(gt=0, description="seconds that a run waits where a server only says that it is asked too much")
    ] = 300.0
    retries: Annotated[int, Field(ge=0, description="attempts after the first, those that a limit refused aside")] = 6
    unanswered: Annotated[GaveUp, Field(description="keep: the next run asks again; drop: counted as dropped")] = (
        GaveUp.KEEP
    )
    prices: Annotated[Prices, Field(description="per million tokens; for the cost that a run tells")] = Prices()
    budget: Annotated[str, Field(description="20 USD, 3M tokens or 2000 calls; empty: none")] = ""

    @model_validator(mode="after")
    def _budget_is_known(self) -> ApiLimits:
        amount = self.budget_amount
        if amount is None or not amount.is_money:
            return self
        if not self.prices.prompt and not self.prices.completion:
            raise ValueError(f"budget: {amount} needs the model's `prices`; or give it in tokens or calls")
        if self.prices.currency and self.prices.currency != amount.unit:
            raise ValueError(f"budget: {amount} is not in the currency of the prices, {self.prices.currency}")
        return self

    @property
    def budget_amount(self) -> Amount | None:
        """The budget; None where there is none.

        Raises:
            ValueError: when it is none.
        """
        return parse_budget(self.budget) if self.budget else None

    @property
    def currency(self) -> str:
        """What the prices are in: as they say, or as the budget says; else dollars. Empty without prices."""
        if not self.prices.prompt and not self.prices.completion:
            return ""
        amount = self.budget_amount
        return self.prices.currency or (amount.unit if amount is not None and amount.is_money else "USD")

    @property
    def stated(self) -> bool:
        """Whether the user says how many calls the servers may have."""
        return "concurrency" in self.model_fields_set

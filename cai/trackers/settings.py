"""What an experiment says of trackers: ``tracking``. It decides no result, so it counts for no step's key."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from cai.settings import Settings

Word = Annotated[str, Field(min_length=1, max_length=128)]


class TensorBoard(Settings):
    """Event files under ``dir``: below the run's folder, or, where it is absolute, in a folder of the run's name."""

    dir: Word = "tensorboard"


class Wandb(Settings):
    """Weights & Biases. ``offline`` writes files below the run's folder, for ``wandb sync``.

    The key comes from WANDB_API_KEY, or from what ``wandb login`` has kept; it is never written in an experiment.
    """

    project: Word = "cai"
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"
    tags: tuple[Word, ...] = ()


class Mlflow(Settings):
    """MLflow. ``uri`` is ``file:FOLDER``, ``sqlite:///FILE`` or a server's address.

    Where it is left out, MLFLOW_TRACKING_URI says it, and where that is not set, ``file:./mlruns``. Passwords and
    tokens come from MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN.
    """

    uri: str | None = None
    experiment: Word = "cai"

    @field_validator("uri")
    @classmethod
    def _holds_no_secret(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
        except ValueError:
            raise ValueError("is no address") from None
        if parts.scheme in ("http", "https") and ("@" in parts.netloc or parts.query or not parts.hostname):
            raise ValueError(
                "is no address, or holds a user, a password or a query; a password goes into MLFLOW_TRACKING_PASSWORD"
            )
        if parts.password is not None or not value.strip():
            raise ValueError("holds a password, or nothing; write file:./mlruns, sqlite:///mlflow.db or https://HOST")
        return value


class Tracking(Settings):
    """Which trackers a run is told to; one that is left out, or ``null``, is off. ``true`` is one with its defaults."""

    tensorboard: TensorBoard | None = None
    wandb: Wandb | None = None
    mlflow: Mlflow | None = None

    @field_validator("tensorboard", "wandb", "mlflow", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    def enabled(self) -> dict[str, TensorBoard | Wandb | Mlflow]:
        """Those that are on, by name."""
        settings_by_name = {"tensorboard": self.tensorboard, "wandb": self.wandb, "mlflow": self.mlflow}
        return {name: settings for name, settings in settings_by_name.items() if settings is not None}

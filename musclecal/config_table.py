"""What all tables of a campaign file have in common: unknown keys are errors, numbers are finite."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Positive", "Table"]

Positive = Annotated[float, Field(gt=0.0)]


class Table(BaseModel):
    """A table of a campaign file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

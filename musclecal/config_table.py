"""What all tables of a file have in common: unknown keys are errors, numbers are finite, messages name the key."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from musclecal.errors import InputError

__all__ = ["Positive", "Table", "input_error"]

Positive = Annotated[float, Field(gt=0.0)]


class Table(BaseModel):
    """A table of a campaign file, or of another one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def input_error(path: Path, error: ValidationError) -> InputError:
    """All that is wrong with a file, each with table and key."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        lines.append(f"{where}: {message}" if where else message)
    return InputError(f"{path}: " + "; ".join(lines))

"""Base of every configuration: frozen, keyword-only, no unknown keys, checked once at the edge."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Config(BaseModel):
    """A frozen value; an unknown key or a value outside its bounds is a ``ValidationError``."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def explain(error: ValidationError) -> str:
    """The error in one line a field: where, what was given, what is allowed."""
    lines = []
    for problem in error.errors():
        # Tags of unions and names of validators stand between the keys that the user wrote.
        place = ".".join(str(part) for part in problem["loc"]) or "value"
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = "" if isinstance(given, (dict, list)) or repr(given) in message else f" (given: {given!r})"
        if problem["type"] == "extra_forbidden":
            message, shown = "unknown key", ""
        lines.append(f"{place}: {message}{shown}")
    return "\n".join(lines)

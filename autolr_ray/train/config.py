"""Base of every configuration: frozen, keyword-only, no unknown keys, checked once at the edge."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

# Fields that hold one of several kinds of configuration.
_TAGGED = ("optimizer", "schedule")


class Config(BaseModel):
    """A frozen value; an unknown key or a value outside its bounds is a ``ValidationError``."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def explain(error: ValidationError) -> str:
    """The error in one line a field: where, what was given, what is allowed."""
    lines = []
    for problem in error.errors():
        place = ".".join(_keys(problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        said = problem["type"] in ("value_error", "union_tag_invalid", "missing")
        shown = "" if said or isinstance(given, (dict, list)) else f" (given: {given!r})"
        if problem["type"] == "extra_forbidden":
            message, shown = "unknown key", ""
        if not place and problem["type"] == "model_type":
            message, shown = f"a mapping of fields is needed, this is {type(given).__name__}", ""
        # A check of the whole names the field in its own words.
        lines.append(f"{place}: {message}{shown}" if place else f"{message}{shown}")
    return "\n".join(lines)


def _keys(place: tuple[int | str, ...]) -> list[str]:
    """The keys that the user wrote: pydantic puts a tagged union's tag right after the union's own key."""
    before = ("", *place)[: len(place)]
    return [str(part) for part, last in zip(place, before, strict=True) if last not in _TAGGED]

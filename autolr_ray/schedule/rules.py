"""Switch rules by name."""

from __future__ import annotations

from autolr_ray.schedule.paper_rule import PaperRule
from autolr_ray.schedule.robust_rule import RobustRule
from autolr_ray.schedule.switch import SwitchRule

RULES: dict[str, type[SwitchRule]] = {"robust": RobustRule, "paper": PaperRule}


def get_rule(rule: str | SwitchRule) -> SwitchRule:
    """A new rule of that name, or the given one; ValueError for an unknown name."""
    if isinstance(rule, SwitchRule):
        return rule
    if rule not in RULES:
        raise ValueError(f"rule: unknown {rule!r}; allowed: {', '.join(RULES)}, or a SwitchRule")
    return RULES[rule]()

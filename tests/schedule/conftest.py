"""Fixtures of the schedules' tests."""

import pytest

from autolr_ray.schedule.swing import Swing


@pytest.fixture
def pace_alone(monkeypatch):
    """The losses are made up: gradients know nothing of them. What they say is in test_swing.py."""
    monkeypatch.setattr(Swing, "is_little", lambda *_: False)
    monkeypatch.setattr(Swing, "is_much", lambda *_: False)
    monkeypatch.setattr(Swing, "floor", lambda self, losses, fallen: losses)

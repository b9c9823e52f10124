"""A network that nobody planned for: see ``generated.py``, and ``make fuzz`` for 10,000 of them."""

from __future__ import annotations

import gc

import pytest
from generated import property_test


@pytest.fixture(autouse=True)
def few_objects():
    """Each run looks for traced functions among all objects: spare it those of other tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


test_random_networks_under_random_schedules = property_test(100)

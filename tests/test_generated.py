"""A network that nobody planned for: see ``generated.py``, and ``make fuzz`` for 10,000 of them."""

from __future__ import annotations

from generated import property_test

test_random_networks_under_random_schedules = property_test(100)

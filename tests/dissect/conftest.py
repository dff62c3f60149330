"""What the dissectors' tests share: how many examples hypothesis tries."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# ``HYPOTHESIS_PROFILE=nightly`` tries twenty times as many.
for _name, _examples in (("default", 500), ("nightly", 10_000)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

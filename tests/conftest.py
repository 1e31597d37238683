"""What every test may use: a random source whose seed is printed, and Hypothesis without a clock."""

import os
import random

import pytest
from hypothesis import settings

# A deadline per example fails on a busy machine, and a failure must say how to come back to it.
settings.register_profile("pocketmq", deadline=None, print_blob=True)
settings.load_profile("pocketmq")


@pytest.fixture
def seeded_random(request: pytest.FixtureRequest) -> random.Random:
    """A random source; a failing test's report names the seed, and POCKETMQ_SEED brings it back."""
    seed = int(os.environ.get("POCKETMQ_SEED") or random.SystemRandom().getrandbits(32))
    request.node.add_report_section("setup", "seed", f"POCKETMQ_SEED={seed}")
    return random.Random(seed)

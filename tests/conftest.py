"""What holds for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def the_same_draws_in_any_order() -> None:
    """A test's random tensors depend on no other test, nor on which process runs it."""
    torch.manual_seed(0)

"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # before numpy is imported: several workers share the processors


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real CMS events beside the checkout; tests that need it skip where it is absent."""
    root = Path(__file__).parents[1]
    folder = root / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there")
    return folder.resolve()

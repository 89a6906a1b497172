"""Fixtures of all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

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


@pytest.fixture(scope="session")
def command() -> Callable[..., Result]:
    """``command("closure", "--json", code=0)``: it must end with ``code``, never with an exception or a traceback."""
    from musclecal.cli import main

    def run(*arguments: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        told = f"{result.exit_code}\n{result.stdout}\n{result.stderr}\n{result.exception!r}"
        assert result.exception is None or isinstance(result.exception, SystemExit), told
        assert result.exit_code == code, told
        assert "Traceback" not in result.output
        if code == 2:
            assert not result.stdout, told
            assert result.stderr.strip(), told
        return result

    return run

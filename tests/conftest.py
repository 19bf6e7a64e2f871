import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from cet_rl.cli import main
from cet_rl.vision.data import load

settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device here")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


def run_python(*arguments, cwd=None, timeout=550, succeeds=False, **environment):
    """Run Python in a process of its own, with changes to the environment, and return how it has ended."""
    command, given = [sys.executable, *map(str, arguments)], {"cwd": cwd, "env": {**os.environ, **environment}}
    result = subprocess.run(command, **given, capture_output=True, text=True, timeout=timeout, check=False)
    assert result.returncode == 0 or not succeeds, result.stderr
    return result


def here(*arguments):
    """Run a command in this process, for speed; tests of some commands cross the process boundary."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([*map(str, arguments)])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


def assert_refused(result, *words):
    """Exit code 2, nothing on stdout, and one line that holds the words, which is returned."""
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("cet-rl: error: ")
    assert_holds(lines[0], *words)
    return lines[0]


def assert_holds(text, *words):
    for word in words:
        assert word in text

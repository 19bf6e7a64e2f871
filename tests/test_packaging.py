"""The built wheel and source distribution, installed outside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return {path.suffix: path for path in out.iterdir()}


def test_what_is_in_them(distributions):
    with zipfile.ZipFile(distributions[".whl"]) as wheel:
        names = wheel.namelist()
    for wanted in ("cet_rl/py.typed", "cet_rl/configs/cartpole-8s.yaml", "cet_rl/vision/datasets.yaml"):
        assert wanted in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cet_rl"}
    with tarfile.open(distributions[".gz"]) as sdist:
        packed = {name.split("/", 1)[-1] for name in sdist.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "cet_rl/configs/cartpole-8s.yaml"} <= packed


@pytest.mark.parametrize("kind", [".whl", ".gz"])
def test_they_train_and_find_their_configurations(distributions, kind, tmp_path):
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*install, "--target", str(site), str(distributions[kind])], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(site), "OPENBLAS_NUM_THREADS": "1"}
    where = [sys.executable, "-c", "import cet_rl; print(cet_rl.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert found.stdout.startswith(str(site))
    command = [sys.executable, "-m", "cet_rl", "train", "--config", "cartpole-8s", "--total-steps", "3000"]
    command += ["--hidden", "8", "--eval-episodes", "2", "--run-dir", "run", "--quiet"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"

"""The examples of the README run as written, but for their budgets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cet_rl.cli.train import parse_arguments

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^cet-rl train ([^#\n]*)", README, re.MULTILINE)


@pytest.mark.parametrize("example", PYTHON, ids=range(len(PYTHON)))
def test_python_examples(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(example.replace("1_000_000", "2_000").replace("n_eval_episodes=100", "n_eval_episodes=2"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("delay: 8\n")
    run = tmp_path / "runs" / "CartPole-v1-cet5-8s-0"  # what one of them resumes
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("task: CartPole-v1\ndelay: 8\n")
    assert parse_arguments(shlex.split(command)).learning.task in ("CartPole-v1", "LunarLander-v3")


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target

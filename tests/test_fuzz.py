"""Run folders whose files were changed by chance or malice: going on with one, or evaluating it, is safe.

Whatever the files say, `cet-rl train --resume` and `cet-rl eval` do what they would have done, or say in one line
what is wrong; nothing in them is ever executed.
"""

import shutil
from functools import partial

import pytest
from conftest import assert_refused, here
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import changes, damage

from cet_rl.cli import main
from cet_rl.runs.process import Interruption

RUNS = {
    "rl": "CartPole-v1 --delay 1 --total-steps 200 --n-steps 5 --num-envs 2 --hidden 4 --eval-episodes 1 --quiet",
    "vision": "digits --delay 0.6 --total-steps 12 --hidden 4 --batch-size 16 --streaming --quiet",
    "recurrent": "add --delay 0.4 --total-steps 200 --units 3 --executor step --quiet",
}
NUMBERS = [b"1e15", b"-3", b"0", b"7", b"1e308", b"nan", b".inf", b"64", b"1e-9", b"null", b"[]", b"true", b"x"]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run of each task kind, stopped half way."""
    root = tmp_path_factory.mktemp("runs")
    for name, words in RUNS.items():
        asked = iter([False] * 4 + [True] * 1000)
        wanted = property(partial(lambda asked, self: next(asked), asked), lambda self, value: None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Interruption, "wanted", wanted, raising=False)
            assert main(["train", *words.split(), "--checkpoint-every", "2", "--run-dir", str(root / name)]) == 130
    return root


def files_of(folder):
    found = [folder / "config.yaml", folder / "metrics.csv", folder / "summary.json"]
    return found + sorted((folder / "checkpoint").iterdir())


@pytest.mark.parametrize("task_kind", RUNS)
@settings(max_examples=12)
@given(place=st.integers(0, 4), mutation=changes(NUMBERS, 3), command=st.sampled_from(["train", "eval"]))
def test_mutated_files_are_refused_or_harmless(interrupted, tmp_path_factory, task_kind, place, mutation, command):
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(interrupted / task_kind, folder)
    files = files_of(folder)
    damage(files[place % len(files)], mutation)
    words = {"eval": ["eval", folder], "train": ["train", "--run-dir", folder, "--resume", "--quiet"]}
    result = here(*words[command])
    assert result.returncode in (0, 2)
    assert "Traceback" not in result.stderr
    if result.returncode == 2:
        assert_refused(result)

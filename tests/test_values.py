"""Values of configurations, wherever they come from, the marks of their fields, and hints for unknown names."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

import numpy as np
import pytest
import yaml
from conftest import run_python

from cet_rl.rl.config import RLConfig
from cet_rl.runs.config import Mark, RunConfig, marked
from cet_rl.runs.config_files import dump_yaml, load_yaml
from cet_rl.runs.task_kinds import TASK_KINDS, options_marked
from cet_rl.runs.values import checked, nearest, unknown

NAMES = ["delay", "decay", "order", "seed", "seeds", "lr"]
MEANT = {"dealy": "delay", "decya": "decay", "ordr": "order", "Seed": "seed", "seedss": "seeds", "xyz": None}


@pytest.mark.parametrize("name", MEANT)
def test_the_nearest_name_by_edits_is_suggested(name):
    meant = nearest(name, NAMES)
    assert meant == MEANT[name]
    hint = f"did you mean {meant}?" if meant else "choose from delay, decay, order, seed, seeds, lr"
    assert str(unknown("option", name, NAMES)) == f"unknown option {name!r}; {hint}"


@pytest.mark.parametrize(
    ("value", "hint", "plain"),
    [
        (np.float64(0.5), float, 0.5),
        (np.float32(0.5), float | None, 0.5),
        (np.int64(3), int, 3),
        (np.int64(3), float, 3.0),
        (np.True_, bool, True),
        (np.str_("cet"), str | None, "cet"),
        ([np.int64(8), 8], tuple[int, ...] | None, (8, 8)),
        ((0.1, np.float64(0.9)), tuple[float, float], (0.1, 0.9)),
        (None, tuple[int, ...] | None, None),
    ],
)
def test_numbers_of_numpy_become_plain_ones(value, hint, plain):
    found = checked(value, hint, "--x")
    assert (found, type(found)) == (plain, type(plain))
    if isinstance(found, tuple):
        assert [type(each) for each in found] == [type(each) for each in plain]


def test_a_configuration_of_numpy_s_numbers_is_saved_as_yaml():
    config = RLConfig(
        "CartPole-v1", lr=np.float64(1e-3), delay=np.float32(8), order=np.int64(5), hidden=[np.int64(8)]
    )
    assert yaml.safe_load(yaml.safe_dump(config.as_data())) == load_yaml(dump_yaml(config.as_data()))
    assert config == RLConfig("CartPole-v1", lr=1e-3, delay=8.0, order=5, hidden=(8,))


NUMBERS = {"5e-4": 5e-4, "1_000": 1000, "-3": -3, ".5": 0.5, "1.": 1.0, "2E3": 2000.0, "true": True, "~": None}


@pytest.mark.parametrize("text", NUMBERS)
def test_yaml_is_read_as_people_read_it(text):
    assert load_yaml(f"a: {text}") == {"a": NUMBERS[text]}
    assert type(load_yaml(text)) is type(NUMBERS[text])


@pytest.mark.parametrize("text", ["010", "0x10", "1:30", "yes", "no", "on", "2024-01-01", "1e", "."])
def test_what_yaml_1_1_reads_otherwise_is_text(text):
    assert load_yaml(text) == text
    assert load_yaml(dump_yaml({"a": text})) == yaml.safe_load(dump_yaml({"a": text})) == {"a": text}


def test_fields_keep_the_marks_of_those_that_they_override():
    @dataclass(frozen=True)
    class Other(RunConfig):
        delay: float = 4.0
        mine: Annotated[int, Mark.NEUTRAL] = 1

    assert "delay" in marked(Other, Mark.BATCHABLE)
    assert marked(Other, Mark.NEUTRAL) == {"alignment", "mine"}
    assert options_marked(Mark.MACHINE) == {"device", "threads", "data_dir"}
    for task_kind in TASK_KINDS:
        names = {item.name for item in fields(task_kind.config())}
        assert all(marked(task_kind.config(), mark) <= names for mark in Mark)


PUBLIC = """
import importlib, pydoc, sys
package = importlib.import_module(sys.argv[1])
assert "torch" not in sys.modules
assert set(package.__all__) <= set(dir(package))
shown = pydoc.plain(pydoc.render_doc(package))
for name in package.__all__:
    kind = getattr(package, name)
    assert not isinstance(kind, type) or f"class {name}(" in shown, name
assert not hasattr(package, "Nothing")
"""


@pytest.mark.parametrize(
    "package", ["cet_rl", *(f"cet_rl.{each}" for each in ("agents", "rl", "vision", "recurrent"))]
)
def test_public_names_are_listed_and_imported_on_first_use(package):
    run_python("-c", PUBLIC, package, timeout=120, succeeds=True)


@pytest.mark.parametrize(
    "code",
    [
        "recurrent.config import summaries; summaries()",
        "runs.paper import paper_row; paper_row('mnist', delay=1, order=2)",
        "runs.paper import paper_row; paper_row('CartPole-v1', delay=8)",
    ],
)
def test_what_is_looked_up_without_torch(code):
    run_python("-c", f"from cet_rl.{code}; import sys; assert 'torch' not in sys.modules", succeeds=True)

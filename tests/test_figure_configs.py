"""The configurations of the papers' figures and tables: every cell can be run, and --quick is small."""

from __future__ import annotations

from functools import cache

import pytest
import yaml

from cet_rl.runs.config_files import package_configs
from cet_rl.runs.paper import paper_row, paper_tables
from cet_rl.runs.task_kinds import RECURRENT, RL, VISION, task_kind_of
from cet_rl.sweeps.build import build, configuration
from cet_rl.sweeps.file import read_sweep

FIGURES = {
    "fig3-mnist": 129,
    "fig3-cifar10": 129,
    "fig4-cartpole": 93,
    "fig4-lunarlander": 93,
    "fig4-spaceinvaders": 63,
    "fig7-mnist": 12,
    "fig7-cifar10": 12,
    "fig8-cartpole": 15,
    "fig8-lunarlander": 15,
    "lambda-spaceinvaders": 20,
    "traces-cartpole": 125,
    "traces-spaceinvaders": 55,
    "traces-mnist": 39,
    "rules-fig1-add": 120,
    "rules-fig1-mimic": 120,
    "late-add": 65,
}
"""Cells of each."""

SEARCHES = {"tables1-2": 960, "tables3-4": 108, "tables5-6": 1572, "table7": 240}

CELLS = {**FIGURES, **SEARCHES}

QUICK_STEPS = {
    ("mnist", False): 500,
    ("mnist", True): 150,
    ("cifar10", False): 100,
    ("cifar10", True): 50,
    **{(task, stacked): 60_000 for task in ("CartPole-v1", "LunarLander-v3") for stacked in (False, True)},
    ("MinAtar/SpaceInvaders-v1", False): 60_000,
    **{(task, False): 20_000 for task in ("add", "mimic", "late-add")},
}
"""Most steps of a quick run, by task and whether its delays add up: none takes more than about a minute."""


@cache
def cells(name, quick=False):
    return build(read_sweep(name, quick=quick)).jobs


def test_every_sweep_of_the_package_that_names_a_figure_or_table_is_tested_here():
    named = {name for name in package_configs() if name.startswith(("fig", "table", "rules-"))}

    assert named <= set(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_can_be_run(name):
    built = cells(name)

    assert len(built) == CELLS[name]
    for cell in built:
        task_kind, config = configuration(cell)
        assert task_kind is task_kind_of(config.task)
        assert config.seed == cell.values["seed"]


@pytest.mark.parametrize("name", CELLS)
def test_the_first_line_is_a_comment_that_the_list_of_configurations_shows(name):
    text = package_configs()[name].read_text(encoding="utf-8")

    assert text.startswith("# ")
    assert len(text.splitlines()[0]) > 40
    assert isinstance(yaml.safe_load(text)["title"], str)


@pytest.mark.parametrize("name", CELLS)
def test_quick_is_small_and_of_the_same_tasks(name):
    quick = cells(name, True)
    full = cells(name)

    assert 2 <= len(quick) <= 12
    assert len(quick) < len(full)
    assert {cell.values["task"] for cell in quick} <= {cell.values["task"] for cell in full}
    for cell in quick:
        config = cell.values
        assert config["total_steps"] <= QUICK_STEPS[config["task"], config["stacked"]]
        assert config["total_steps"] < max(each.values["total_steps"] for each in full)


@pytest.mark.parametrize("name", CELLS)
def test_no_two_configurations_share_a_title(name):
    titles = [read_sweep(other).title for other in CELLS if other != name]

    assert read_sweep(name).title not in titles


@pytest.mark.parametrize("name", [name for name in FIGURES if name.startswith("fig")])
def test_cascades_of_the_figures_have_the_rates_of_the_tables(name):
    checked = 0
    for cell in cells(name):
        _, config = configuration(cell)
        if config.trace_config.kind not in ("cet", "et"):
            continue
        row, _ = paper_row(
            config.task, delay=config.delay, order=config.trace_config.states, stacked=config.stacked
        )
        assert {key: getattr(config, key) for key in row} == row
        checked += 1
    assert checked >= 12


@pytest.mark.parametrize("table", paper_tables(), ids=lambda table: table.name)
def test_every_row_of_the_tables_is_a_cell_of_a_figure(table):
    found = set()
    for name in FIGURES:
        if name.startswith("fig"):
            for cell in cells(name):
                _, config = configuration(cell)
                if config.task in table.tasks:
                    kind = config.trace_config.kind
                    order = None if kind == "none" else config.trace_config.states
                    found.add((config.delay, config.stacked, order))

    for row in table.rows:
        assert (row.delay, table.stacked, row.order) in found


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_hold_every_rate_that_the_tables_ended_with(name):
    searched = set()
    for cell in cells(name):
        _, config = configuration(cell)
        searched.add((config.task, config.delay, config.stacked, config.trace_config.states, config.lr))
    tasks = {task for task, *_ in searched}

    compared = 0
    for table in paper_tables():
        for row in table.rows:
            for task in tasks & set(table.tasks):
                stacked = any(wanted == (task, True) for wanted in {(key[0], key[2]) for key in searched})
                if row.order is not None and table.stacked == stacked:
                    assert (task, row.delay, table.stacked, row.order, row.values["lr"]) in searched
                    compared += 1
    assert compared >= 8


def test_searches_of_images_never_look_at_the_test_set():
    for name in ("tables1-2", "tables3-4"):
        assert all(cell.values["validation"] for cell in cells(name))


def test_the_rules_of_the_audit_papers_figure_have_its_setting():
    for name in ("rules-fig1-add", "rules-fig1-mimic"):
        for cell in cells(name):
            values = cell.values
            assert (values["units"], values["alpha"], values["lr"]) == (32, 0.5, 1e-4)
            assert values["total_steps"] == 1_000_000
        assert len({cell.values["seed"] for cell in cells(name)}) == 20
    assert {tuple(cell.values["lags"]) for cell in cells("rules-fig1-add")} == {(3, 5)}


def test_all_task_kinds_have_a_figure():
    assert {task_kind_of(cells(name)[0].values["task"]).name for name in FIGURES} == {
        RL.name,
        VISION.name,
        RECURRENT.name,
    }

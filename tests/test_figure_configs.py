"""The configurations of the papers' figures and tables: every job can be run, and --quick is small."""

from functools import cache

import pytest
import yaml

from cet_rl.runs.config_files import package_configs
from cet_rl.runs.paper import paper_row, paper_tables
from cet_rl.runs.task_kinds import task_kind_of
from cet_rl.sweeps.build import build, configuration
from cet_rl.sweeps.file import read_sweep

FIGURES = {
    **{"fig3-mnist": 129, "fig3-cifar10": 129, "fig4-cartpole": 93, "fig4-lunarlander": 93},
    **{"fig4-spaceinvaders": 75, "fig7-mnist": 12, "fig7-cifar10": 12, "fig8-cartpole": 15},
    **{"fig8-lunarlander": 15, "lambda-spaceinvaders": 20, "traces-cartpole": 185, "traces-spaceinvaders": 65},
    **{"traces-mnist": 45, "rules-fig1-add": 120, "rules-fig1-mimic": 120, "late-add": 70, "beyond-mnist": 18},
    **{"retrograde-spaceinvaders": 6, "wrong-delay": 126, "split-cartpole": 12},
}
"""Number of jobs of each."""

SEARCHES = {"tables1-2": 960, "tables3-4": 108, "tables5-6": 1572, "table7": 240}
JOBS = {**FIGURES, **SEARCHES}

QUICK_STEPS = {
    ("mnist", False): 500,
    ("mnist", True): 150,
    ("cifar10", False): 100,
    ("cifar10", True): 50,
    **{(task, stacked): 60_000 for task in ("CartPole-v1", "LunarLander-v3") for stacked in (False, True)},
    **{("MinAtar/SpaceInvaders-v1", stacked): 60_000 for stacked in (False, True)},
    **{(task, False): 20_000 for task in ("add", "mimic", "late-add")},
}
"""Most steps of a quick run, by task and whether its delays add up: none takes more than about a minute."""


@cache
def jobs(name, quick=False):
    return build(read_sweep(name, quick=quick)).jobs


@cache
def configs(name):
    return [configuration(job)[1] for job in jobs(name)]


def test_every_sweep_of_the_package_that_names_a_figure_or_table_is_tested_here():
    assert {name for name in package_configs() if name.startswith(("fig", "table", "rules-"))} <= set(JOBS)
    assert len({read_sweep(name).title for name in JOBS}) == len(JOBS)


@pytest.mark.parametrize("name", JOBS)
def test_every_job_can_be_run_and_the_list_of_configurations_shows_a_comment(name):
    assert len(jobs(name)) == JOBS[name]
    for job in jobs(name):
        task_kind, config = configuration(job)
        assert task_kind is task_kind_of(config.task)
        assert config.seed == job.values["seed"]
    text = package_configs()[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(text.splitlines()[0]) > 40
    assert isinstance(yaml.safe_load(text)["title"], str)


@pytest.mark.parametrize("name", JOBS)
def test_quick_is_small_and_of_the_same_tasks(name):
    quick, full = jobs(name, True), jobs(name)
    assert 2 <= len(quick) <= min(12, len(full) - 1)
    assert {job.values["task"] for job in quick} <= {job.values["task"] for job in full}
    for values in (job.values for job in quick):
        assert values["total_steps"] <= QUICK_STEPS[values["task"], values["stacked"]]
        assert values["total_steps"] < max(job.values["total_steps"] for job in full)


@pytest.mark.parametrize("name", [name for name in FIGURES if name.startswith("fig")])
def test_cascades_of_the_figures_have_the_rates_of_the_tables(name):
    cascades = [config for config in configs(name) if config.trace_config.kind in ("cet", "et")]
    assert len(cascades) >= 12
    for config in cascades:
        order = config.trace_config.order_or_default
        row, _ = paper_row(config.task, delay=config.delay, order=order, stacked=config.stacked)
        assert {key: getattr(config, key) for key in row} == row


@pytest.mark.parametrize("table", paper_tables(), ids=lambda table: table.name)
def test_every_row_of_the_tables_is_a_job_of_a_figure(table):
    found = set()
    for config in (config for name in FIGURES if name.startswith("fig") for config in configs(name)):
        if config.task in table.tasks:
            order = None if config.trace_config.kind == "none" else config.trace_config.order_or_default
            found.add((config.delay, config.stacked, order))
    assert {(row.delay, table.stacked, row.order) for row in table.rows} <= found


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_hold_every_rate_that_the_tables_ended_with(name):
    searched = {(c.task, c.delay, c.stacked, c.trace_config.order_or_default, c.lr) for c in configs(name)}
    scales = {(task, stacked) for task, _, stacked, _, _ in searched}
    ended = {
        (task, row.delay, table.stacked, row.order, row.values["lr"])
        for table in paper_tables()
        for task in table.tasks
        for row in table.rows
        if (task, table.stacked) in scales and row.order is not None
    }
    assert len(ended) >= 8
    assert ended <= searched


def test_searches_of_images_never_look_at_the_test_set():
    assert all(config.validation for name in ("tables1-2", "tables3-4") for config in configs(name))


def test_the_rules_of_the_audit_papers_figure_have_its_setting():
    for name in ("rules-fig1-add", "rules-fig1-mimic"):
        assert {(c.units, c.alpha, c.lr, c.total_steps) for c in configs(name)} == {(32, 0.5, 1e-4, 1_000_000)}
        assert len({config.seed for config in configs(name)}) == 20
    assert {config.lags for config in configs("rules-fig1-add")} == {(3, 5)}

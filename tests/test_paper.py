"""The paper's hyper-parameters as data, against cells read from its tables by hand."""

import pytest
import yaml

from cet_rl.cli.train import parse_arguments
from cet_rl.rl.config import RLConfig
from cet_rl.runs import paper
from cet_rl.runs.paper import paper_row, paper_tables
from cet_rl.runs.task_kinds import RL, build_config, task_kind_of
from cet_rl.traces.registry import DEFAULT_ORDER

SPACE_INVADERS = "MinAtar/SpaceInvaders-v1"
TABLES = {table.name: table for table in paper_tables()}

SHARED = {"gamma": 0.99, "entropy_coef": 0.01, "max_grad_norm": 0.5, "hidden": (256, 256), "activation": "relu"}
"""The "Common" block of Table 5, and the networks of appendix C."""


NUMBERS = {
    "CartPole-v1-behavioural": (6, 31),
    "CartPole-v1-retrograde": (7, 4),
    "LunarLander-v3-behavioural": (6, 31),
    "LunarLander-v3-retrograde": (7, 4),
    "MinAtar-SpaceInvaders-behavioural": (6, 21),
    "cifar10-behavioural": (1, 24),
    "cifar10-retrograde": (3, 4),
    "mnist-behavioural": (2, 24),
    "mnist-retrograde": (4, 4),
}
"""Number of each table, and how many rows it has."""


def test_numbers_of_tables_and_rows():
    assert {name: (table.table, len(table.rows)) for name, table in TABLES.items()} == NUMBERS
    for name, table in TABLES.items():
        assert len({(row.delay, row.order) for row in table.rows}) == len(table.rows)
        assert table.stacked == name.endswith("retrograde")


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_row_is_a_configuration_that_is_found(table):
    for row, task in ((row, task) for row in table.rows for task in table.tasks):
        values, line = paper_row(task, delay=row.delay, order=row.order, stacked=table.stacked)
        assert values == {"task": task, **row.values}
        assert line == f"paper, Table {table.table}: {task}, {row.describe()}"
        config = build_config({"task": task}, values)
        assert config.trace_config.order_or_default == (DEFAULT_ORDER if row.order is None else row.order)
        command = [task, "--config", "paper", "--delay", f"{row.delay:g}", *["--stacked"] * table.stacked]
        parsed = parse_arguments([*command, *(["--order", str(row.order)] if row.order else [])])
        assert (parsed.config, parsed.note) == (config, line)


def test_options_go_over_the_row():
    line = "LunarLander-v3 --delay 32 --order 8 --config paper --gamma 0.9"
    config = parse_arguments(line.split()).config
    assert (config.lr, config.normalization, config.anneal_lr, config.gamma) == (5e-4, "area", False, 0.9)
    line = "mnist --delay 2 --order 10 --config paper --lr 5e-4 --hidden 64 --streaming"
    config = parse_arguments(line.split()).config
    assert (config.lr, config.hidden, config.streaming, config.weight_decay) == (5e-4, (64,), True, 1e-2)
    line = "cifar10 --delay 120 --stacked --order 10 --config paper"
    config = parse_arguments(line.split()).config
    assert (config.lr, config.weight_decay, config.warmup, config.total_steps) == (5e-5, 1e-1, 0.2, 1_562_500)
    assert round(config.salience * config.batch_size) == 16
    assert config.timing.layer_delays == (2400, 1800, 1200, 600, 0)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_what_the_rows_of_a_table_share_and_what_the_paper_chose_from(table):
    for row in table.rows:
        values = row.values
        if task_kind_of(table.tasks[0]) is RL:
            config = RLConfig(table.tasks[0], **values)
            assert config.lr in (1e-4, 2.5e-4, 5e-4, 9e-4)
            assert config.timing.step_duration == (0.3 if table.stacked else 0.2)
            assert (config.decay is not None) == (row.order == 1)
            assert config.decay in (None, 0.5, 0.7, 0.9, 0.99)
            assert {name: values[name] for name in SHARED} == SHARED
            continue
        assert values["weight_decay"] in (0, 1e-3, 1e-2, 1e-1)
        assert (values["normalization"], values["step_ms"]) == ("area", 200)
        assert values["total_steps"] == (1_562_500 if table.name == "cifar10-retrograde" else 20_000)
        assert row.delay in ((120,) if table.stacked else (0.2, 0.6, 1, 2, 4, 10))
        schedule = (1280, 0.0125, 0.2) if table.stacked else (128, None, 0.1)
        assert (values["batch_size"], values.get("salience"), values["warmup"]) == schedule


CELLS = {
    ("CartPole-v1", False): """
        0 - 9e-4 - peak, 2 1 5e-4 0.5 peak, 4 1 5e-4 0.9 peak, 4 5 2.5e-4 - peak, 4 8 2.5e-4 - peak,
        4 10 5e-4 - peak, 32 1 1e-4 0.99 peak, 32 10 1e-4 - peak, 64 5 9e-4 - peak, 64 10 5e-4 - peak,
        128 1 5e-4 0.5 peak, 128 2 1e-4 - peak, 128 10 2.5e-4 - peak
    """,
    ("LunarLander-v3", False): """
        0 - 5e-4 - area, 2 1 9e-4 0.99 peak, 4 10 9e-4 - area, 8 8 9e-4 - area, 8 10 5e-4 - area,
        32 8 5e-4 - area, 32 10 2.5e-4 - area, 64 10 5e-4 - area, 128 1 5e-4 0.7 peak, 128 10 9e-4 - area
    """,
    ("MinAtar/SpaceInvaders-v1", False): """
        0 - 9e-4 - peak, 1.2 1 2.5e-4 0.9 peak, 1.2 2 9e-4 - peak, 1.2 10 9e-4 - peak, 2 1 9e-4 0.99 peak,
        4 5 9e-4 - peak, 8 1 5e-4 0.99 peak, 8 8 2.5e-4 - peak, 8 10 5e-4 - peak
    """,
    ("CartPole-v1", True): "120 1 1e-4 0.9 peak, 120 2 1e-4 - peak, 120 5 1e-4 - peak, 120 10 2.5e-4 - peak",
    ("LunarLander-v3", True): "120 1 2.5e-4 0.5 peak, 120 2 5e-4 - area, 120 5 2.5e-4 - area, 120 10 5e-4 - peak",
    ("cifar10", False): """
        0.2 1 1e-3 1e-1, 0.6 1 1e-3 1e-3, 1 1 1e-4 0, 1 2 1e-3 1e-2, 2 10 1e-3 0, 4 6 1e-4 1e-3,
        10 2 1e-4 1e-2, 10 10 1e-4 1e-3
    """,
    ("mnist", False): """
        0.2 1 1e-3 1e-1, 0.2 6 1e-3 1e-2, 0.6 10 1e-3 1e-3, 2 2 1e-3 1e-2, 4 6 1e-3 0, 10 1 1e-4 0,
        10 2 1e-4 1e-2, 10 10 1e-3 1e-3
    """,
    ("cifar10", True): "120 1 1e-5 1e-1, 120 10 5e-5 1e-1",
    ("mnist", True): "120 1 1e-4 1e-3, 120 2 1e-4 1e-1, 120 10 1e-4 0",
}
"""Rows of the paper's tables, first and last ones and some between, by task and whether delays are stacked.

Each has delay, order, learning rate, then decay and normalisation of environments or weight decay of data sets.
"""


@pytest.mark.parametrize(
    ("task", "stacked", "cell"),
    [(task, stacked, cell.strip()) for (task, stacked), text in CELLS.items() for cell in text.split(",")],
)
def test_cells_read_from_the_paper(task, stacked, cell):
    delay, *rest = cell.split()
    order, lr, *others = (None if word == "-" else float(word) if word[0].isdigit() else word for word in rest)
    values, _ = paper_row(task, delay=float(delay), order=order and int(order), stacked=stacked)
    assert (values["lr"], values.get("delay", 0), values.get("order")) == (lr, float(delay), order)
    assert values.get("stacked", False) == stacked
    if len(others) == 2:
        assert [values.get("decay"), values["normalization"]] == others
    else:
        assert [values["weight_decay"], values.get("decay")] == [*others, None]


@pytest.mark.parametrize(
    ("task", "expected"),
    [  # total_steps, num_envs, n_steps, lam, random_lam, anneal_lr
        ("CartPole-v1", (5_000_000, 4, 128, 0.95, None, True)),
        ("LunarLander-v3", (5_000_000, 4, 128, 0.95, None, False)),
        (SPACE_INVADERS, (10_000_000, 32, 32, None, (0.1, 0.99), False)),
        ("MinAtar/SpaceInvaders-v0", (10_000_000, 32, 32, None, (0.1, 0.99), False)),
    ],
)
def test_what_the_rows_of_an_environment_share(task, expected):
    names = ("total_steps", "num_envs", "n_steps", "lam", "random_lam", "anneal_lr")
    rows = [row.values for table in TABLES.values() if task in table.tasks for row in table.rows]
    assert {tuple(values.get(name) for name in names) for values in rows} == {expected}


def test_what_is_asked_for_in_other_words():
    def cell(**asked):
        return paper_row("CartPole-v1", **asked)

    assert cell() == cell(delay=0.0, trace="none")
    assert cell(delay=8) == cell(delay=8, order=DEFAULT_ORDER, trace="cet")
    assert cell(delay=8 * (1 + 1e-12), order=2) == cell(delay=8, order=2)
    values, line = cell(delay=8, trace="et")
    assert values == {**cell(delay=8, order=1)[0], "trace": "et"}
    assert (cell(delay=8, order=1, trace="et"), RLConfig(**values).label) == ((values, line), "et0.99-8s")


@pytest.mark.parametrize(
    ("task", "asked", "line"),
    [
        ("LunarLander-v3", {"delay": 32, "order": 8}, "Table 6: LunarLander-v3, 32 s, CET order 8: lr 5e-4"),
        ("CartPole-v1", {}, "Table 6: CartPole-v1, no delay, backprop: lr 9e-4"),
        (
            "CartPole-v1",
            {"delay": 120, "order": 1, "stacked": True},
            "Table 7: CartPole-v1, 120 s a layer, classical trace, decay 0.9: lr 1e-4",
        ),
        ("mnist", {"delay": 0.6, "order": 6}, "Table 2: mnist, 0.6 s, CET order 6: lr 1e-3, weight decay 1e-1"),
        ("mnist", {"delay": 10, "order": 1}, "Table 2: mnist, 10 s, classical trace: lr 1e-4, weight decay 0"),
    ],
)
def test_the_line_that_says_which_row_it_is(task, asked, line):
    assert paper_row(task, **asked)[1] == f"paper, {line}"


@pytest.mark.parametrize(
    ("task", "asked", "words"),
    [
        ("CartPole-v1", {"delay": 16}, ["16 s and order 5", "2, 4, 8, 32, 64 and 128 s", "1, 2, 5, 8 and 10"]),
        ("CartPole-v1", {"delay": 8, "order": 3}, ["8 s and order 3", "1, 2, 5, 8 and 10", "backprop"]),
        ("CartPole-v1", {"delay": 8 * (1 + 1e-8)}, ["Tables 5 and 6 of the paper have no row"]),
        ("CartPole-v1", {"delay": float("nan")}, ["no row"]),
        ("CartPole-v1", {"delay": 8, "stacked": True}, ["a delay of 120 s with orders 1, 2, 5 and 10"]),
        ("CartPole-v1", {"stacked": True}, ["Tables 5 and 7", "no delay", "a delay of 120 s"]),
        ("CartPole-v1", {"delay": 120, "order": 8, "stacked": True}, ["order 8", "1, 2, 5 and 10"]),
        (SPACE_INVADERS, {"delay": 32}, ["1.2, 2, 4 and 8 s"]),
        (SPACE_INVADERS, {"delay": 120, "stacked": True}, ["retrograde", "CartPole-v1, LunarLander-v3"]),
        ("LunarLander-v2", {"delay": 8}, ["no table for LunarLander-v2", "LunarLander-v3", SPACE_INVADERS]),
        ("mnist", {}, ["Table 2 of the paper has no row for mnist with no delay: it has", "1, 2, 6 and 10"]),
        ("mnist", {"delay": 1}, ["order 5", "delays of 0.2, 0.6, 1, 2, 4 and 10 s"]),
        ("digits", {"delay": 1, "order": 2}, ["no table for digits"]),
        ("CartPole-v1", {"order": 5}, ["give a delay"]),
        ("CartPole-v1", {"delay": 8, "trace": "none"}, ["without delay"]),
        ("CartPole-v1", {"delay": 8, "trace": "et", "order": 5}, ["no meaning for trace 'et'"]),
        ("CartPole-v1", {"delay": 8, "trace": "cat"}, ["unknown trace"]),
        *(
            ("CartPole-v1", {"delay": 8, "trace": kind}, [f"trace '{kind}'", "cet, et", "leave out --config"])
            for kind in ("sharp", "legendre", "perfect", "ltp-ltd")
        ),
    ],
)
def test_what_the_paper_does_not_have_is_refused(task, asked, words):
    with pytest.raises(ValueError, match=r".") as refusal:
        paper_row(task, **asked)
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_key_that_is_none_is_refused_with_its_place():
    data = {"source": "s", "table": 6, "tasks": ["A-v0"], "common": {"gamma": 0.9}, "rows": [{"rate": 1}]}
    with pytest.raises(ValueError, match=r"paper/mine\.yaml, row 1: unknown key 'rate'"):
        paper._read(yaml.safe_dump(data), "mine")

"""Sweeps: what a file asks for, its jobs, and folders that are not mixed."""

import contextlib

import pytest
import yaml
from sweep_fakes import fake

from cet_rl.rl.config import RLConfig
from cet_rl.runs.paper import paper_row
from cet_rl.sweeps.build import build
from cet_rl.sweeps.file import parse_seeds, read_sweep
from cet_rl.sweeps.folder import SweepFolder, settings_shared
from cet_rl.sweeps.known import fingerprint


def file_of(tmp_path, text, **options):
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return read_sweep(str(file), **options)


def points(found, *keys):
    return [tuple(asked.settings.get(key) for key in keys) for asked in found.combinations]


@pytest.mark.parametrize(
    ("text", "keys", "expected"),
    [
        (
            "grid: {delay: [1, 2], lr: [1.0e-3, 1.0e-2]}\narms: [{order: 2}, {order: 5}]",
            ("order", "delay", "lr"),
            [(order, delay, lr) for order in (2, 5) for delay in (1, 2) for lr in (1e-3, 1e-2)],
        ),
        (
            "grid: {delay: [1, 2]}\narms: [{order: 5}, {trace: none, delay: 0}]",
            ("order", "delay"),
            [(5, 1), (5, 2), (None, 0)],
        ),
        (
            "delay: 2\narms: [{name: CET, grid: {order: [2, 10], delay: [2]}}, "
            "{name: perfect, trace: perfect}, {order: 3}]",
            ("trace", "order", "delay"),
            [(None, 2, 2), (None, 10, 2), ("perfect", None, 2), (None, 3, 2)],
        ),
    ],
    ids=["arm by arm", "an arm's own settings are not crossed", "an arm with a grid of its own"],
)
def test_arms_are_crossed_with_the_grid(tmp_path, text, keys, expected):
    found = file_of(tmp_path, f"task: digits\n{text}")
    assert points(found, *keys) == expected
    assert (found.title, found.seeds) == ("study", (0,))
    if "name" in text:
        assert [one.name for one in found.combinations] == ["CET, order 2", "CET, order 10", "perfect", None]


def test_quick_settings_take_the_place_of_all_others(tmp_path):
    text = (
        "task: digits\ntotal_steps: 1000\ngrid: {delay: [1, 2, 4]}\nseeds: 0-9\n"
        "arms: [{order: 2, lr: 1.0}, {grid: {order: [3, 4]}}]\n"
        "quick: {total_steps: 10, lr: 2.0, seeds: [7], grid: {delay: [4], order: [3]}}\n"
    )
    full, quick = file_of(tmp_path, text), file_of(tmp_path, text, quick=True)
    assert (len(full.combinations), full.seeds) == (3 + 6, tuple(range(10)))
    assert points(full, "lr", "total_steps")[0] == (1.0, 1000)
    assert points(quick, "order", "delay", "lr", "total_steps") == [(2, 4, 2.0, 10), (3, 4, 2.0, 10)]
    assert quick.seeds == (7,)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0-4", (0, 1, 2, 3, 4)),
        ("0,2, 5-6", (0, 2, 5, 6)),
        (3, (3,)),
        ([1, 0], (1, 0)),
        ("7-7", (7,)),
        ("4-0", "ends before it begins"),
        *[(value, "a range such as 0-4") for value in ("a-b", "-1", 1.5, True, {0: 1})],
        ([], "at least one"),
        ("0,0-2", "0 is given twice"),
        ("4294967296", r"2\^32"),
        ("0-200000", "more than 100,000"),
    ],
)
def test_seeds_are_ranges_or_lists(value, expected):
    if isinstance(expected, tuple):
        assert parse_seeds(value, "seeds") == expected
    else:
        with pytest.raises(ValueError, match=f"seed.*{expected}"):
            parse_seeds(value, "seeds")


MANY = ("delay", "order", "lr", "weight_decay", "batch_size", "streams", "warmup", "max_grad_norm")  # × 10 values
BAD_FILES = [
    ("task: digits\ngird: {delay: [1]}", ["unknown key 'gird'", "did you mean grid?"]),
    (
        "task: digits\ngrid: {tolerance: [0.1]}",
        ["tolerance is an option of traces", "trace_options: [tolerance=VALUE]"],
    ),
    ("task: digits\ngrid: {dely: [1]}", ["study.yaml, grid: unknown key 'dely'", "did you mean delay"]),
    ("task: digits\narms: [{order: 2}, {oder: 5}]", ["study.yaml, arm 2: unknown key 'oder'"]),
    ("task: digits\nquick: {total_step: 5}", ["study.yaml, quick: unknown key 'total_step'"]),
    ("task: digits\ndelay: 1\ngrid: {delay: [1, 2]}", ["delay is set and in the grid"]),
    ("task: digits\narms: [{order: 2, grid: {order: [1, 2]}}]", ["arm 1: order is set and in the grid"]),
    *[(f"task: digits\ngrid: {{delay: {value}}}", ["grid: delay must be a list"]) for value in ("1", "[]")],
    ("task: digits\ngrid: [delay]", ["grid must be a mapping"]),
    ("task: digits\narms: []", ["arms must be a list of mappings"]),
    ("task: digits\narms: [5]", ["arm 1 must be a mapping"]),
    ("task: digits\narms: [{name: 5}]", ["arm 1: name must be text"]),
    ("task: digits\nseed: 3", ["seed has no place here: use seeds"]),
    ("task: digits\nthreads: 3", ["threads has no place here"]),
    ("task: digits\nconfig: cartpole-8s", ["config must be paper, got 'cartpole-8s'"]),
    ("task: digits\ntitle: [a]", ["title must be text"]),
    ("task: digits\ngrid: {delay: [1]}\nquick: {delay: 2}", ["quick: delay is in the grid"]),
    ("task: digits\nquick: {grid: {delay: [2]}}", ["quick: delay is in no grid"]),
    ("task: digits", ["no quick settings"]),
    ("task: digits\nquick: {lr: 1.0}\nseeds: 0-50000\ngrid: {delay: [1, 2]}", ["more than 100,000 jobs"]),
    (f"task: digits\ngrid: {{{', '.join(f'{n}: {[*range(1, 11)]}' for n in MANY)}}}", ["more than 100,000 jobs"]),
    ("- 1", ["must hold a mapping"]),
]


def jobs_of(tmp_path, text, **options):
    return build(file_of(tmp_path, text, **options)).jobs


def test_the_fingerprint_is_that_of_sorted_json_without_the_machine():
    values = {"task": "digits", "seed": 0, "lr": 0.001, "hidden": [8, 8], "trace": None}
    # printf '%s' '{"hidden":[8,8],"lr":0.001,"seed":0,"task":"digits","trace":null}' | sha256sum
    assert (fingerprint(values), fingerprint(dict(reversed(values.items())))) == ("17b6d3f5", "17b6d3f5")
    assert fingerprint({**values, "device": "cuda", "threads": 8, "data_dir": "/data"}) == "17b6d3f5"
    assert fingerprint({**values, "seed": 1}) != "17b6d3f5"


def test_jobs_have_readable_names_that_their_runs_confirm(tmp_path):
    """The fingerprint in a name is that of the config.yaml that the run will have."""
    from cet_rl.rl.training import resolve
    from cet_rl.vision.config import VisionConfig
    from cet_rl.vision.training import resolve as resolve_images

    tasks = ("CartPole-v1", "digits")
    jobs = jobs_of(
        tmp_path, f"total_steps: 1000\ngrid: {{task: [{', '.join(tasks)}]}}\ndelay: 2\nseeds: 0-1\nhidden: [16]"
    )
    assert [job.readable for job in jobs] == [f"{task}-cet5-2s-{seed}" for task in tasks for seed in (0, 1)]
    rl = resolve(RLConfig("CartPole-v1", delay=2.0, total_steps=1000, hidden=(16,), seed=1))
    images = resolve_images(VisionConfig("digits", delay=2.0, total_steps=1000, hidden=(16,), seed=1))
    for config, job in ((rl, jobs[1]), (images, jobs[3])):
        assert job.name.endswith(f"-{fingerprint(config.as_data())}")
        assert {**config.as_data(), "device": "auto"} == {**job.values, "threads": config.threads}


def test_precedence_of_values(tmp_path):
    text = "task: MinAtar/Breakout-v1\nlr: 1.0e-3\narms: [{}, {num_envs: 4, lr: 2.0e-3}]\nquick: {lr: 3.0e-3}"
    tuned, arm = jobs_of(tmp_path, text)
    assert (tuned.values["num_envs"], tuned.values["critic"], tuned.values["lr"]) == (32, "mlp", 1e-3)
    assert (arm.values["num_envs"], arm.values["lr"]) == (4, 2e-3)
    assert [job.values["lr"] for job in jobs_of(tmp_path, text, quick=True)] == [3e-3, 3e-3]


def test_jobs_of_the_paper(tmp_path):
    arms = "arms: [{order: 1}, {order: 8, lr: 1.0}, {trace: perfect, config: null}]"
    jobs = jobs_of(tmp_path, f"task: LunarLander-v3\nconfig: paper\ngrid: {{delay: [4, 32]}}\n{arms}\nhidden: [8]")
    row, _ = paper_row("LunarLander-v3", delay=32.0, order=1)
    for key in ("lr", "decay", "lam", "total_steps"):
        assert jobs[1].values[key] == row[key]
    assert [job.values["lr"] for job in jobs[2:4]] == [1.0, 1.0]
    assert [job.values["total_steps"] for job in jobs[4:]] == [2_000_000] * 2  # the tuned defaults
    assert {tuple(job.values["hidden"]) for job in jobs} == {(8,)}


BAD_JOBS = [
    ("grid: {delay: [1, 2]}", ["job delay 1", "names no task"]),
    ("task: CartPole-v1\norder: 0\ndelay: 2", ["order must be at least 1"]),
    ("task: CartPole-v1\ngrid: {delay: [2, 2.1]}", ["job delay 2.1", "2.2 s"]),
    ("task: CartPole-v1\narms: [{lr: soon}]", ["job lr soon", "lr must be a number"]),
    ("task: digits\nnum_envs: 4", ["num_envs does not apply to digits", "reinforcement learning"]),
    ("task: digts", ["unknown task 'digts'", "did you mean digits?"]),
    ("task: CartPol-v1", ["unknown environment", "CartPole-v1"]),
    ("task: CartPole-v1\nagent: sb3:a2d", ["unknown agent 'sb3:a2d'"]),
    ("task: CartPole-v1\nagent: sb3:a2c\ndelay: 2\ntrace: legendre", ["--trace has no meaning for agent sb3:a2c"]),
    ("task: CartPole-v1\nagent: sb3:a2c\nconfig: paper", ["paper's agent, not for sb3:a2c"]),
    ("task: CartPole-v1\ndelay: 3\norder: 5\nconfig: paper", ["no row for CartPole-v1 with a delay of 3 s"]),
    ("task: digits\ndelay: 2\narms: [{order: 5}, {}]", ["(order 5)", "the same run"]),
    ("task: digits\narms: [{model: auto}, {model: mlp}]", ["(model auto) and (model mlp) are the same run"]),
    ("task: digits\ngrid: {lr: [1.0e-3, 0.001]}", ["are the same run"]),
]


@pytest.mark.parametrize(("text", "words"), [*BAD_FILES, *BAD_JOBS])
def test_what_cannot_be_run_is_refused_by_file_and_key(tmp_path, text, words):
    with pytest.raises(ValueError, match=r"study\.yaml") as caught:
        jobs_of(tmp_path, text, quick="quick" in text or text == "task: digits")
    for word in words:
        assert word in str(caught.value)


def test_the_sweep_that_comes_with_the_package():
    sweep = build(read_sweep("quick"))
    assert (len(sweep.jobs), len({job.arm for job in sweep.jobs})) == (16, 4)
    assert {job.values["task"] for job in sweep.jobs} == {"digits"}


def test_a_folder_keeps_its_sweep_to_which_jobs_may_be_added(tmp_path):
    folder, sweep = SweepFolder(tmp_path / "new"), fake(0, 1, hidden=[8, 8], lr=1e-05)
    assert (folder.open_for(sweep), folder.read(), folder.open_for(sweep)) == (2, sweep, 0)
    assert settings_shared(sweep.jobs) == {"task": "fake", "total_steps": 100, "hidden": [8, 8], "lr": 1e-05}
    assert folder.open_for(fake(2, 1, 0, hidden=[8, 8], lr=1e-05)) == 1
    with pytest.raises(ValueError, match=r"holds more jobs than asked for \(fake-arm-2\)"):
        folder.open_for(sweep)
    assert len(folder.read().jobs) == 3


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (fake(0, 1, total_steps=200), ["fake-arm-0 has total_steps 100 there, 200 here", "2 of its jobs differ"]),
        (fake(0, 7), ["fake-arm-1 has seed 1 there, 7 here"]),
        (fake(5, title="mine", a=1, b=2, c=3, d=4, e=5), ["belongs to another sweep ('a study', not 'mine')"]),
    ],
)
def test_another_sweep_is_told_what_differs(tmp_path, other, words):
    folder = SweepFolder(tmp_path)
    folder.open_for(fake(0, 1))
    before = folder.sweep_file.read_bytes()
    with pytest.raises(ValueError, match="choose another --run-dir") as caught:
        folder.open_for(other)
    for word in words:
        assert word in str(caught.value)
    assert folder.sweep_file.read_bytes() == before


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    for name, words in (("file", "is a file"), ("run", "not empty and no sweep folder")):
        with pytest.raises(ValueError, match=words):
            SweepFolder(tmp_path / name).open_for(fake(0))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    with pytest.raises(OSError, match=r"cannot write to sweep folder .*: Not a directory"):
        SweepFolder(tmp_path / "file" / "sweep").open_for(fake(0))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [("seed: 0", "seed: 3", "edited .fake-arm-0."), ("jobs:", "jobs: [", "damaged"), ("title", "x", "damaged")],
)
def test_a_sweep_yaml_that_was_tampered_with(tmp_path, old, new, words):
    folder = SweepFolder(tmp_path)
    folder.open_for(fake(0, 1))
    text = folder.sweep_file.read_text()
    assert old in text
    folder.sweep_file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=words):
        folder.open_for(fake(0, 1))


def test_a_run_whose_configuration_was_edited(tmp_path):
    folder, sweep = SweepFolder(tmp_path), fake(0, 1)
    folder.open_for(sweep)
    run = folder.run_path(sweep.jobs[1].name)
    run.mkdir()
    for change, words in (
        (yaml.safe_dump({**sweep.jobs[1].values, "threads": 4}), None),
        (
            yaml.safe_dump({**sweep.jobs[1].values, "total_steps": 5}),
            r"total_steps 5 there, 100 here\): .*, or move its folder away",
        ),
        ("a: [", r"config\.yaml is damaged: .*, or move its folder away"),
    ):
        (run / "config.yaml").write_text(change)
        with pytest.raises(ValueError, match=words) if words else contextlib.nullcontext():
            folder.open_for(sweep)

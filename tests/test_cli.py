"""The command line as a subprocess, and what it leaves behind."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import yaml
from conftest import assert_holds, assert_refused, here, run_python
from saved_files import files, rows, summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cet_rl import Optimal
from cet_rl.agents import CETActorCritic
from cet_rl.cli import main
from cet_rl.cli.train import parse_arguments
from cet_rl.recurrent.rules import RULES

QUICK = ["--total-steps", "30000", "--hidden", "16", "16", "--eval-episodes", "5"]
ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def cet_rl(*arguments, cwd, **options):
    return run_python("-m", "cet_rl", *arguments, cwd=cwd, **ENVIRONMENT, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was let finish, in the default folder."""
    cwd = tmp_path_factory.mktemp("finished")
    result = cet_rl("train", "CartPole-v1", "--delay", 8, "--order", 5, *QUICK, cwd=cwd, succeeds=True)
    return cwd, cwd / "runs" / "CartPole-v1-cet5-8s-0", result


def test_a_run_leaves_what_it_should(finished):
    _, folder, result = finished
    assert {"config.yaml", "metrics.csv", "checkpoint", "summary.json"} <= {p.name for p in folder.iterdir()}
    found = summary(folder)
    assert " ".join(found) == "task agent seed status steps wall_seconds steps_per_second metrics versions"
    assert (found["task"], found["agent"], found["seed"]) == ("CartPole-v1", "cet", 0)
    assert (found["status"], found["steps"]) == ("finished", 30208)
    assert " ".join(found["metrics"]) == "eval_return_mean eval_return_std eval_episodes train_return_mean"
    assert 8 < found["metrics"]["eval_return_mean"] <= 500
    assert found["metrics"]["eval_episodes"] == 5
    assert found["steps_per_second"] > 100
    assert CETActorCritic.load(folder / "checkpoint" / "agent.zip").num_timesteps == 30208
    assert_holds(result.stderr, "run folder", "samples/s", "return", ":00 left")
    assert_holds(result.stderr, "evaluation:", "tensorboard --logdir", "cet-rl report")


def test_the_configuration_is_resolved_and_repeats_the_run(finished, tmp_path):
    _, folder, _ = finished
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trace"] == "cet"
    assert config["device"] in ("cpu", "cuda")
    assert config["threads"] >= 1
    again = here("train", "--config", folder / "config.yaml", "--run-dir", tmp_path / "again", "--quiet")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert summary(folder)["metrics"] == summary(tmp_path / "again")["metrics"]
    assert rows(folder) == rows(tmp_path / "again")
    assert len(rows(folder)) >= 3


def test_tensorboard_reads_it(finished):
    _, folder, _ = finished
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()
    tags = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "eval/mean_reward"}
    tags |= {f"train/{name}" for name in ("learning_rate", "value_loss", "entropy_loss", "explained_variance")}
    assert tags | {f"credit/alignment/{layer}" for layer in range(3)} <= set(events.Tags()["scalars"])
    for layer in range(3):
        assert all(-1 <= point.value <= 1 for point in events.Scalars(f"credit/alignment/{layer}"))
    logged = {int(float(row["time/total_timesteps"])): row["rollout/ep_rew_mean"] for row in rows(folder)}
    for point in events.Scalars("rollout/ep_rew_mean"):
        assert float(logged[point.step]) == pytest.approx(point.value)
    assert events.Images("credit/kernel")[0].encoded_image_string.startswith(b"\x89PNG")
    assert_holds(events.summary_metadata["_hparams_/session_start_info"].plugin_data.content, b"delay", b"order")
    rates = [point.value for point in events.Scalars("train/learning_rate")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_eval(finished):
    cwd, folder, _ = finished
    found = summary(folder)
    result = cet_rl("eval", folder, "--episodes", 5, cwd=cwd, succeeds=True)
    mean, deviation = map(float, re.search(r"return ([\d.]+) ± ([\d.]+) over 5 episodes", result.stdout).groups())
    assert mean == pytest.approx(found["metrics"]["eval_return_mean"], abs=0.051)
    assert deviation == pytest.approx(found["metrics"]["eval_return_std"], abs=0.051)
    assert "over 100 episodes" in here("eval", folder).stdout
    assert len({here("eval", folder, "--episodes", 30, "--seed", seed).stdout for seed in (1, 1, 2)}) == 2


def test_a_finished_run_is_never_overwritten(finished, monkeypatch):
    cwd, folder, _ = finished
    before = files(folder)
    command = ["train", "CartPole-v1", "--delay", 8, "--order", 5, *QUICK]
    assert_refused(cet_rl(*command, cwd=cwd), "already holds a finished run")
    monkeypatch.chdir(cwd)
    assert_refused(here(*command, "--lam", "0.9"), "lam 0.95 there, 0.9 here", "another --run-dir")
    assert here(*command, "--resume").returncode == 0
    assert_refused(here(*command, "--resume", "--lr", "1e-3"), "lr 0.0005 there, 0.001 here")
    assert before == files(folder)


def start(cwd, *arguments):
    command = [sys.executable, "-m", "cet_rl", "train", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def interrupt_when(process, ready, number=signal.SIGINT):
    """Send a signal when a condition holds, and return what the process has said on stderr."""
    while not ready():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on(tmp_path, number):
    folder = tmp_path / "run"
    command = ["CartPole-v1", "--delay", 2, "--run-dir", folder, "--total-steps", 100_000]
    command += ["--hidden", 8, "--eval-episodes", 5]
    metrics = folder / "metrics.csv"
    err = interrupt_when(start(tmp_path, *command), lambda: metrics.exists() and len(rows(folder)) > 1, number)
    assert "--resume" in err
    found = summary(folder)
    assert found["status"] == "interrupted"
    saved = CETActorCritic.load(folder / "checkpoint" / "agent.zip").num_timesteps
    assert 0 < found["steps"] == saved < 100_000
    assert_refused(cet_rl("train", *command, cwd=tmp_path), "unfinished run", "--resume")
    result = cet_rl("train", "--run-dir", folder, "--resume", cwd=tmp_path)  # the folder knows the rest
    assert result.returncode == 0, result.stderr
    assert f"resuming at {saved:,}" in result.stderr
    assert summary(folder)["status"] == "finished"
    steps = [int(float(row["time/total_timesteps"])) for row in rows(folder)]
    assert steps == sorted(steps)
    assert steps[-1] >= 100_000


def test_an_interrupted_evaluation_goes_on(tmp_path):
    command = ["MountainCar-v0", "--run-dir", "run", "--hidden", 8, "--total-steps", 600]
    process = start(tmp_path, *command, "--eval-episodes", 100_000)
    saved = tmp_path / "run" / "checkpoint" / "agent.zip"
    err = interrupt_when(process, lambda: saved.exists() and not time.sleep(0.5))
    assert "interrupted at 1,024 samples" in err
    assert summary(tmp_path / "run")["status"] == "interrupted"


def test_resume_starts_afresh_where_there_is_nothing_to_resume(tmp_path):
    command = ["train", "CartPole-v1", "--total-steps", "600", "--hidden", "8", "--eval-episodes", "1", "--quiet"]
    for folder in ("missing", "empty", "killed"):
        path = tmp_path / folder
        if folder != "missing":
            path.mkdir()
        if folder == "killed":
            (path / "config.yaml").write_bytes((tmp_path / "missing" / "config.yaml").read_bytes())
            (path / "metrics.csv").write_text("time/total_timesteps\n10\n")
        assert main([*command, "--resume", "--run-dir", str(path)]) == 0
        assert int(float(rows(path)[0]["time/total_timesteps"])) > 10


def test_a_live_display_in_a_terminal(tmp_path):
    """Progress, return, speed and time left, drawn on a pseudo-terminal."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "cet_rl", "train", "CartPole-v1", *QUICK, "--run-dir", str(tmp_path / "run")]
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, env=environment, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    with suppress(OSError):  # a terminal that nobody has open any more cannot be read
        while chunk := os.read(leader, 65536):
            shown += chunk
    assert process.wait(60) == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert re.search(r"learning .*\d+/30000 return [\d.]+ [\d,]+ samples/s \d+:\d+:\d+", text)


@pytest.mark.parametrize("command", ["train add --total-steps 30000 --units 4 --run-dir run", "list"])
def test_a_command_goes_on_when_the_reader_of_its_output_has_gone(tmp_path, command):
    words = [sys.executable, "-m", "cet_rl", *command.split()]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, **pipes)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    if "train" in command:
        assert summary(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("command", ["rules rflo", "list", "train --help", "sweep --help"])
def test_a_terminal_without_unicode_is_shown_what_it_can_show(tmp_path, monkeypatch, command):
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "ascii")
    result = cet_rl(*command.split(), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout) > 100


WITHOUT_TORCH = """
import sys
from cet_rl.cli import main
for line in sys.argv[1:]:
    assert main(line.split()) == (0 if "--resume" in line else 2), line
    assert not {"torch", "stable_baselines3", "datasets"} & set(sys.modules), line
"""


def test_refusals_that_need_only_the_folder_do_not_wait_for_torch(tmp_path):
    lines = ["eval nowhere", "report nowhere", "eval CartPole-v1", "sweep quick --run-dir mine", "xyzzy"]
    lines += ["train CartPole-v1 --delay 8 --order 5 --config paper --run-dir mine"]
    for task in ("CartPole-v1", "CartPole-v1 --agent sb3:a2c", "digits", "add"):
        config = parse_arguments([*task.split(), "--delay", "2", "--total-steps", "5000"]).config.resolved()
        name = task.split()[0] + "-a2c" * ("a2c" in task)
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config.as_data()))
        (tmp_path / name / "summary.json").write_text('{"status": "finished"}')
        same = f"train {task} --delay 2 --total-steps 5000 --run-dir {name}"
        lines += [same, f"{same} --resume", f"train {task} --run-dir mine"]
        lines += [f"{same} --lr 0.1", f"train {task} --seeds 0-1 --run-dir mine"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    found = run_python("-c", WITHOUT_TORCH, *lines, cwd=tmp_path, timeout=120, succeeds=True)
    assert_holds(found.stderr, "no run folder", "already holds a finished run", "is finished")
    assert_holds(found.stderr, "lr 0.001 there, 0.1 here", "\npaper, Table 6: CartPole-v1, 8 s, CET order 5")
    assert_holds(found.stderr, "unknown command 'xyzzy'; choose from train, sweep, tune")


def test_configuration_files_and_precedence(tmp_path, elsewhere):
    (tmp_path / "mine.yaml").write_text("task: CartPole-v1\ndelay: 1\norder: 3\nlr: 1e-3\ntotal_steps: 2000\n")
    config = parse_arguments(["--config", "mine.yaml", "--order", "4", "--hidden", "8"]).config
    assert (config.delay, config.order, config.lr, config.num_envs, config.hidden) == (1.0, 4, 1e-3, 4, (8,))
    (tmp_path / "run.yaml").write_text("task: CartPole-v1\nexecutors: [history]\nvectorization: numpy\n")
    for words in ("--seed 3", "--hidden 8 8", "--delay 1 --tolerance 0.1 --trace optimal", "--lam 0"):
        config = parse_arguments(["--config", "run.yaml", *words.split()]).config
        assert (config.executors, config.vectorization) == (("history",) if words == "--seed 3" else None, "numpy")
    assert parse_arguments(["--config", "run.yaml", "--agent", "sb3:ppo"]).config.vectorization == "auto"
    assert parse_arguments(["--config", "cartpole-8s"]).config.delay == 8.0
    with pytest.raises(ValueError, match="is for task CartPole-v1"):
        parse_arguments(["Acrobot-v1", "--config", "mine.yaml"])


@pytest.mark.parametrize(
    "line",
    [
        "--trace optimal --tolerance 0.1",
        "--trace optimal --tolerance=0.1",
        "--trace optimal --trace-options tolerance=0.1",
        "--trace cet_rl:Optimal --tolerance 0.1",
    ],
)
def test_options_of_a_trace_are_options_of_the_command(line):
    config = parse_arguments(["CartPole-v1", "--delay", "8", *line.split()]).config
    assert config.trace_options == ("tolerance=0.1",)
    assert config.trace_config.build(40) == Optimal(5, 40, "peak", 0.1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--trace optimal --tolerance 2", r"tolerance of Optimal must lie in \[0, 1\), got 2"),
        *[(f"--trace optimal --tolerance{rest}", "--tolerance needs a value") for rest in ("", " --order 5")],
        ("--tolerance 0.1", "tolerance 0.1 has no meaning for trace 'cet': only 'optimal' takes one"),
        ("--trace-options order=3", "order has an argument of its own"),
        ("--trace et --decay 0.9 --trace-options decay=0.8", "decay is given twice"),
        ("--trace-delay 8.1", "would be 40.5 steps"),
        *[(f"--trace {t} --trace-delay 9", "made for another delay") for t in ("perfect", "et --decay 0.9")],
        ("--trace-delay 0", "positive number of seconds"),
    ],
)
def test_options_that_no_trace_can_have(line, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(["CartPole-v1", "--delay", "8", *line.split()])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("delay: 8\nordr: 5\n", ["unknown key 'ordr'", "did you mean order"]),
        ("delay: soon\n", ["delay must be a number", "'soon'"]),
        ("seed: 010", ["seed must be a whole number, got '010'"]),
        ("delay: 1:30", ["delay must be a number, got '1:30'"]),
        ("stacked: yes", ["stacked must be true or false, got 'yes'"]),
        ("stacked: 1", ["stacked must be true or false, got 1"]),
        ("hidden: [8, 0x10]", ["hidden must be a list of whole numbers, got [8, '0x10']"]),
        ("trace: 5e-1", ["trace must be text or none, got 0.5"]),
        ("tolerance: 0.1\n", ["write trace_options: [tolerance=VALUE]"]),
        *[(t, [w]) for t, w in (("order: 2.5", "whole number"), ("normalization: sum", "one of area, peak"))],
        ("random_lam: [0.5]\n", ["list of 2 numbers"]),
        *[(text, [word]) for text, word in (("- a\n- b\n", "mapping"), ("a: [\n", "no valid YAML"))],
        ("delay: 8\ndelay: 4\n", ["no valid YAML at line 2: delay is given twice"]),
        ("order: 5\n", ["order belongs to a delay"]),
        (b"delay: \xff\xfe", ["bad.yaml is no UTF-8 text"]),
        ("[" * 5000, ["bad.yaml"]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_configuration_files(tmp_path, text, words):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(here("train", "CartPole-v1", "--config", file, "--run-dir", tmp_path / "run"), *words)
    assert not (tmp_path / "run").exists()


REFUSALS = [
    ("CartPol-v1", ["unknown environment", "did you mean CartPole-v1"]),
    ("Blackjack-v1", ["Box of vectors, or of maps"]),
    *[(f"CartPole-v1 --delay {d}", [w]) for d, w in ((-1, "must be zero or a positive"), ("nan", "finite"))],
    ("CartPole-v1 --total-steps 1e6", ["--total-steps must be a whole number, got '1e6'"]),
    ("CartPole-v1 --delay 8.1", ["8 s and 8.2 s"]),
    ("CartPole-v1 --delay 8 --total-steps 100", ["longest delay is 40 steps", "only 25"]),
    ("CartPole-v1 --delay 120 --stacked --step-ms 300 --total-steps 3000", ["longest delay is 800 steps"]),
    ("CartPole-v1 --delay 8 --order 0", ["order must be at least 1"]),
    ("CartPole-v1 --delay 8 --order five", ["--order", "five"]),
    ("CartPole-v1 --delay 8 --trace sharp --order 1", ["at least 2"]),
    ("CartPole-v1 --lr 0", ["--lr must be positive"]),
    *[(f"CartPole-v1 --delay 8 --trace et --decay {d}", ["between 0 and 1"]) for d in (1, 0)],
    ("CartPole-v1 --delay 8 --trace et --order 5", ["order 5 has no meaning for trace 'et'"]),
    ("CartPole-v1 --delay 8 --trace cet --decay 0.9", ["only 'et' takes one"]),
    ("CartPole-v1 --delay 8 --trace cat", ["unknown trace 'cat'; did you mean cet?"]),
    ("CartPole-v1 --delay 8 --trace none", ["without delay"]),
    ("CartPole-v1 --trace cet", ["bridges a delay"]),
    ("CartPole-v1 --order 3", ["give a delay"]),
    *[(f"CartPole-v1 --{o} 0", [f"--{o} must be at least 1"]) for o in ("total-steps", "n-steps", "threads")],
    ("CartPole-v1 --eval-episodes 0", ["--eval-episodes must be at least 1"]),
    ("CartPole-v1 --num-envs -3", ["--num-envs must be at least 1"]),
    ("CartPole-v1 --threads 2000", ["--threads must be at most 1024"]),
    ("CartPole-v1 --seed -1", ["--seed"]),
    ("CartPole-v1 --step-ms 0", ["step duration"]),
    ("CartPole-v1 --random-lam 0.9 0.1", ["random_lam"]),
    *[(f"CartPole-v1 {odd} 1", [f"by itself, as in -s 5, got {odd}"]) for odd in ("-s5", "-s=5", "-qs")],
    ("CartPole-v1 --lam 2", ["lam must lie in"]),
    ("CartPole-v1 --agent sb3:ppo --gamma nan", ["gamma must lie in [0, 1], got nan"]),
    ("CartPole-v1 --agent sb3:ppo --value-coef -1", ["value_coef must be finite and not negative, got -1"]),
    ("CartPole-v1 --device tpu", ["--device must be one of auto, cpu, cuda"]),
    ("CartPole-v1 --max-grad-norm inf", ["max_grad_norm must be finite and positive"]),
    ("CartPole-v1 --hidden 100000000000", ["--hidden"]),
    ("CartPole-v1 --threads 99999999999", ["--threads"]),
    ("CartPole-v1 --total-steps 1" + 40 * "0", ["--total-steps is too large"]),
    ("CartPole-v1 --delay 1e308 --step-ms 1e-5", ["more than 1,000,000 steps"]),
    *[(task, ["not installed"]) for task in ("Ant-v5", "phys2d/CartPole-v1")],
    (":CartPole-v1", ["cannot import"]),
    ("no_such_module:CartPole-v1", ["cannot import 'no_such_module'"]),
    ("CartPole-v1 --config a --config b", ["once"]),
    ("CartPole-v1 --resume=true", ["unexpected true"]),
    ("CartPole-v1 --config quick", ["more than one run", "cet-rl sweep quick"]),
    *[(f"CartPole-v1 --{n} conv", [f"convolutional {n}", f"--{n} mlp"]) for n in ("actor", "critic")],
    ("CartPole-v1 --feedback up", ["--feedback"]),
    ("CartPole-v1 --delay 8 --trace legendre --discretization official", ["only 'cet' takes one"]),
    ("CartPole-v1 --delay 3 --config paper", ["no row for CartPole-v1", "2, 4, 8, 32, 64 and 128 s"]),
    ("CartPole-v1 --agent sb3:ppo --config paper", ["config paper is for the paper's agent"]),
    ("CartPole-v1 --activation tanh", ["error_at='activation'"]),
    ("CartPole-v1 --normalization sum", ["must be one of area, peak, got 'sum'"]),
    ("", ["name the task first"]),
    ("--run-dir nowhere --resume", ["nowhere holds no run to resume", "no config.yaml"]),
    ("--resume --quiet --run-dir=nowhere", ["nowhere holds no run to resume"]),
    ("CartPole-v1 --checkpoint-every 5 --seeds 0-1", ["--checkpoint-every does not go with --seeds"]),
    ("minst --batch-size 8", ["unknown task 'minst'; did you mean mnist?"]),
    ("CIFAR-10 --delay 8", ["unknown task 'CIFAR-10'; did you mean cifar10?"]),
    ("mnist --lam 0.9", ["--lam does not apply to mnist", "reinforcement learning"]),
    ("mnist --no-anneal-lr", ["--anneal-lr does not apply to mnist"]),
    ("CartPole-v1 --batch-size 8", ["--batch-size does not apply to CartPole-v1", "digits, mnist, cifar10"]),
    ("CartPole-v1 --batch_size 8", ["--batch-size does not apply to CartPole-v1"]),
    ("--batch-size 8 mnist", ["name the task first, as in cet-rl train CartPole-v1"]),
    ("--quiet", ["name the task first", "--config", "--run-dir"]),
    ("CartPole-v1 mnist", ["unexpected mnist", "cet-rl train TASK"]),
    ("mnist --batch-siz 8", ["unknown option '--batch-siz'; did you mean --batch-size?"]),
    ("CartPole-v1 --dealy 8", ["unknown option '--dealy'; did you mean --delay?"]),
    ("CartPole-v1 --no-aligment", ["did you mean --no-alignment?"]),
    ("CartPole-v1 --xyzzy 1", ["unknown option '--xyzzy'; see cet-rl train TASK --help"]),
    ("mnist --config cartpole-8s", ["cartpole-8s is for task CartPole-v1, not for mnist"]),
    ("--config cartpole-8s mnist", ["unexpected mnist", "cet-rl train TASK"]),
    *[
        (f"CartPole-v1 --delay 8 --trace ltp-ltd {option} ratio=3 --ratio 2", ["gives ratio twice"])
        for option in ("--trace-options", "--trace_options")
    ],
    ("digits --agent cet", ["--agent does not apply to digits: it is an option of reinforcement learning"]),
    ("CartPole-v1 --salience 0.1", ["--salience does not apply to CartPole-v1", "image classification"]),
    ("digits --model rnn", ["--model", "rnn"]),
    ("digits --hidden wide", ["--hidden", "wide"]),
    ("digits --data-dir there", ["digits comes with scikit-learn", "--data-dir"]),
    ("mnist --data-dir there", ["there does not exist", "train.parquet"]),
    ("digits --batch-size 5000", ["from 1 to 1,438", "5000"]),
    ("digits --batch-size 1400 --validation", ["from 1 to 1,294"]),
    ("digits --model cnn --channels 4 4 4 4", ["8×8 pixels are too small for 4 stages"]),
    ("digits --delay 2 --order 6 --config paper", ["no table for digits"]),
    ("add --rule rfol", ["unknown rule 'rfol'", "did you mean rflo"]),
    ("mimc", ["did you mean mimic"]),
    ("add --lags -1 5", ["--lags must not be negative"]),
    ("mimic --lags 2 4", ["--lags belongs to Add"]),
    ("add --rule rtrl --delay 4", ["rule rtrl cannot learn from a late error", "rflo"]),
    ("add --delay 0.3", ["no whole number", "0.2 s and 0.4 s"]),
    ("add --delay 4 --total-steps 20", ["longest delay is 20 steps"]),
    ("add --delay 4 --jitter 0.5 --total-steps 30", ["longest delay is 30 steps"]),
    ("add --delay 4 --jitter 1.5", ["--jitter must lie in [0, 1], as errors follow their cause, got 1.5"]),
    ("add --jitter 0.5", ["--jitter needs a delay"]),
    ("add --delay 2 --jitter 0.5 --executor compiled", ["--executor compiled", "no --jitter", "--executor step"]),
    ("add --delay 2 --stacked --rule fixed-w", ["which --stacked does not delay"]),
    ("add --delay 4 --total-steps 39 --update-every 20", ["longest delay is 20 steps"]),
    ("add --total-steps 2000 --update-every 5000", ["before its first update (--update-every 5,000)"]),
    ("add --rule bptt --rule-options window=50 --total-steps 49", ["first gradient of rule bptt", "step 49"]),
    ("add --alpha 0", ["--alpha must lie in (0, 1]"]),
    ("add --alpha 0.3", ["alpha"]),
    ("add --units 0", ["--units must be at least 1"]),
    ("add --batch-size 0", ["--batch-size must be at least 1"]),
    ("add --rule-options window=3", ["rule rflo has no option 'window'", "it has none"]),
    ("add --error-at activation", ["--error-at does not apply to add"]),
    ("CartPole-v1 --rule rflo", ["--rule does not apply to CartPole-v1", "recurrent networks"]),
    ("CartPole-v1 --checkpoint-every 0", ["--checkpoint-every must be at least 1, got 0"]),
    ("digits --checkpoint-every 0", ["--checkpoint-every must be at least 1, got 0"]),
    ("add --checkpoint-every 0", ["--checkpoint-every must be at least 1, got 0"]),
]
OTHERS = [
    ("traces", ["--delay"]),
    ("traces --delay 0", ["without a delay there is nothing to remember"]),
    ("traces --delay 8.1", ["nearest valid delays are 8 s and 8.2 s"]),
    ("traces --delay 8 --order 0", ["order must be at least 1"]),
    ("traces --delay 8 --order 1 --trace sharp", ["SharpCET needs an order of at least 2"]),
    ("traces --delay 8 --trace none", ["remembers nothing: leave it out"]),
    ("traces --delay 8 --trace-options tol=1", ["choose from decay, discretization, ratio, tolerance"]),
    ("traces --delay 8 --trace-options tolerance=1", ["must lie in [0, 1)"]),
    ("traces --delay 8 --plot a.gif", ["--plot takes a file named .png, .svg or .pdf"]),
    ("traces --delay 8 --plot /proc/a.png", ["cannot write to the folder /proc"]),
    ("rules rfl0", ["did you mean rflo"]),
    ("rules rflo --out nowhere/table.md", ["there is no folder"]),
    ("rules rflo --format xml", ["--format"]),
    ("report --claims . --title T", ["--title"]),
]


@pytest.mark.parametrize(
    ("line", "words"),
    [*((f"train {line}", words) for line, words in REFUSALS), *OTHERS],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_in_one_line(line, words, tmp_path, elsewhere):
    assert_refused(here(*line.split()), *words)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    train = ["train", "CartPole-v1", *QUICK, "--run-dir"]
    assert_refused(cet_rl(*train, "file", cwd=tmp_path), "is a file")
    assert_refused(cet_rl(*train, "full", cwd=tmp_path), "no run folder")
    assert_refused(cet_rl(*train, "full", "--resume", cwd=tmp_path), "no run folder")
    assert_refused(cet_rl(*train, "/proc/nowhere", cwd=tmp_path), "cannot write to run folder")
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_an_environment_that_misbehaves_ends_the_run_cleanly(tmp_path):
    (tmp_path / "broken_env.py").write_text(
        "import gymnasium as gym\nfrom gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Broken(CartPoleEnv):\n    count = 0\n"
        "    def step(self, action):\n        *head, info = super().step(action)\n        self.count += 1\n"
        "        head[1] = float('nan') if self.count == 500 else head[1]\n        return (*head, info)\n"
        "gym.register('Broken-v0', Broken, max_episode_steps=100)\n"
    )
    result = cet_rl("train", "broken_env:Broken-v0", *QUICK, "--run-dir", "run", "--quiet", cwd=tmp_path)
    assert_refused(result, "reward that is not finite at its step 499")
    found = summary(tmp_path / "run")
    assert found["status"] == "failed"
    assert "not finite" in found["error"]


def test_help_version_and_list(tmp_path):
    assert cet_rl("--version", cwd=tmp_path).stdout.startswith("cet-rl 0.")
    assert "cet-rl train CartPole-v1 --delay 8 --order 5" in cet_rl("--help", cwd=tmp_path).stdout
    options = "--delay --order --trace --stacked --random-lam --run-dir --resume TASK"
    assert_holds(cet_rl("train", "--help", cwd=tmp_path).stdout, *options.split())
    listed = cet_rl("list", cwd=tmp_path).stdout
    assert_holds(listed, *["cet", "sb3:a2c", "sb3:ppo", "CartPole-v1", "LunarLander-v3", "Pendulum-v1"])
    assert_holds(listed, *["MinAtar/SpaceInvaders-v1", "digits", "mnist", "cifar10", "legendre", "sharp"])
    assert_holds(listed, *["ratio=", "rflo", "window=", "cartpole-8s", "paper"])
    assert "ltp-ltd" in cet_rl("list", "traces", cwd=tmp_path).stdout
    assert_holds(here("list", "rules", "tasks").stdout, *RULES, "late-add", "mimic")
    assert_refused(cet_rl("list", "trace", cwd=tmp_path), "did you mean traces")
    assert_refused(cet_rl("trian", cwd=tmp_path), "did you mean train")


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "steps", "least"), [(0, 1_000_000, 450), (1, 300_000, 150), (2, 300_000, 150)])
def test_cartpole_is_learned_across_eight_seconds(tmp_path, seed, steps, least):
    """The promise of the README; and two other seeds, which play as well after less than a third of the budget."""
    command = ["train", "CartPole-v1", "--delay", 8, "--order", 5, "--seed", seed, "--total-steps", steps]
    cet_rl(*command, "--run-dir", "run", "--quiet", cwd=tmp_path, succeeds=True)
    metrics = summary(tmp_path / "run")["metrics"]
    assert metrics["eval_episodes"] == 100
    assert metrics["eval_return_mean"] >= 475
    assert metrics["train_return_mean"] >= least


def test_a_foreign_agent_leaves_the_same_things_behind(tmp_path):
    """Trained, interrupted by nothing, evaluated and evaluated again from its folder by name."""
    options = "--delay 8 --agent sb3:a2c --total-steps 12000 --n-steps 16 --eval-episodes 5"
    result = cet_rl("train", "CartPole-v1", *options.split(), cwd=tmp_path, succeeds=True)
    assert "rewards are 8 s late" in result.stderr
    folder = tmp_path / "runs" / "CartPole-v1-sb3-a2c-8s-0"
    found = summary(folder)
    assert found["agent"] == "sb3:a2c"
    assert set(found["metrics"]) == {"eval_return_mean", "eval_return_std", "eval_episodes", "train_return_mean"}
    events = EventAccumulator(str(folder)).Reload()
    assert {"rollout/ep_rew_mean", "train/value_loss", "time/fps"} <= set(events.Tags()["scalars"])
    again = cet_rl("eval", folder, "--episodes", 5, "--agent", "stable_baselines3:A2C", cwd=tmp_path)
    assert f"return {found['metrics']['eval_return_mean']:.1f}" in again.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tr", "train traces"),
        ("train Cart", "CartPole-v1"),
        ("train digits --sal", "--salience"),
        ("train CartPole-v1 --trace o", "optimal"),
        ("report runs --format ", "png svg pdf"),
        ("sweep qu", "quick"),
        ("report run", ""),  # names of files are the shell's
        ("train CartPole-v1 --run-dir ", ""),  # so are those of an option
        ("report --k", ""),  # an option of cet-rl sweep, which the help of report mentions
        ("list --h", "--help"),
        ("train add -c qui", "quick"),
    ],
)
def test_bash_completes(completion, words, expected):
    lines = f'source {completion}; COMP_WORDS=(cet-rl {words.rstrip()} ""); COMP_CWORD={1 + words.count(" ")}'
    command = f'{lines}; _cet_rl; echo "${{COMPREPLY[*]}}"'
    assert subprocess.check_output(["bash", "-c", command], text=True).strip() == expected


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    file = tmp_path_factory.mktemp("completion") / "script"
    result = cet_rl("completion", cwd=file.parent)
    assert (result.returncode, result.stderr) == (0, "")
    file.write_text(result.stdout)
    return file

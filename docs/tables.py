"""Writes the tables of results into the pages of the documentation, from the numbers in docs/data.

    python docs/tables.py

In a page, a table stands below a line `<!-- table: NAME -->`. `phrases` has parts of sentences whose numbers come
from the same data. A test checks that tables and sentences are there as this script would write them.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from cet_rl.runs.files import write_text

DOCS = Path(__file__).parent
LABELS = {"none": "no delay", "perfect": "perfect memory", "et": "ET"}
TEN = ("cet10", "legendre10", "optimal10")
KINDS = ("none", "perfect", "et", "cet", "sharp", "legendre", "optimal")
"""The order of rows."""
KIND_LABELS = {"cet": "CET", "sharp": "SharpCET", "legendre": "Legendre", "optimal": "optimal"}
RULES = {
    **{"fixed-w": "fixed-W", "rflo": "RFLO", "kernl": "KeRNL", "dni": "DNI", "dni-b": "DNI(b)", "uoro": "UORO"},
    **{"r-kf": "R-KF", "kf-rtrl": "KF-RTRL", "bptt": "BPTT, T = 20", "future-bptt": "BPTT, future-facing"},
    "rtrl": "RTRL",
}
AUTHORS = {
    "add": {
        **{
            "fixed-w": ".611",
            "rflo": ".555",
            "kernl": ".567–.570",
            "dni": ".531",
            "dni-b": ".520",
            "uoro": ".515",
        },
        **{"r-kf": ".515", "kf-rtrl": ".506", "bptt": ".505–.509", "rtrl": ".505"},
    },
    "mimic": {
        **{
            "fixed-w": ".0185",
            "rflo": ".0060",
            "kernl": ".0072",
            "dni": ".0066",
            "dni-b": ".0111",
            "uoro": ".0153",
        },
        **{"r-kf": ".0126", "kf-rtrl": ".0063", "bptt": ".0066–.0068", "rtrl": ".0068"},
    },
}
"""What the authors' code ends at, one seed or two, as run once by us; not among our data."""

FULL = {
    "cartpole-full": ("CartPole-v1", False),
    "lunar-lander-full": ("LunarLander-v3", False),
    "lunar-lander-retrograde": ("LunarLander-v3", True),
    "space-invaders-full": ("MinAtar/SpaceInvaders-v1", False),
}
"""Studies whose final numbers are in full.csv, their tasks, and whether their delays are stacked."""

Scores = dict[str, dict[str, list[float]]]
"""A score of each seed, by arm and by what else the table has columns for, such as the delay."""


def scores(table: str, score: str, column: str = "delay", **where: str) -> Scores:
    """Return a score of the rows of a table by arm and by another column, where others have some values."""
    found: Scores = defaultdict(lambda: defaultdict(list))
    with open(DOCS / "data" / f"{table}.csv", newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if all(row[name] == value for name, value in where.items()):
                found[row["arm"]][row[column]].append(float(row[score]))
    return found


def known(name: str, score: str) -> Scores:
    """Return a score of those runs of full.csv that belong to a study of `FULL`, by arm and delay."""
    found: Scores = defaultdict(lambda: defaultdict(list))
    with open(DOCS / "data" / "full.csv", newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            options = json.loads(row["options"])
            if (row["task"], options["stacked"]) == FULL[name]:
                late = f"{options['delay']:g}s" if options["delay"] else ""
                found[re.sub(r"-.*|(?<=^et)0.*", "", row["arm"])][late].append(float(row[score]))
    return found


def samples_to(name: str, arm: str, delay: str, score: float) -> list[int]:
    """Return for each seed of a study's curves how many samples an arm took to its first return of a score."""
    found: dict[str, int] = {}
    with open(DOCS / "data" / f"{name}.csv", newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if (row["arm"], row["delay"]) == (arm, delay) and float(row["return"]) >= score:
                found.setdefault(row["seed"], int(row["samples"]))
    return list(found.values())


def _parts(arm: str) -> tuple[str, int, str]:
    """Return kind, order and the rest of an arm's name."""
    kind, order, rest = re.fullmatch(r"([a-z]+)(\d*)(.*)", arm).groups()  # type: ignore[union-attr]
    return kind, int(order or 0), rest


def label(arm: str) -> str:
    """Return an arm's name as the figures have it."""
    kind, order, rest = _parts(arm)
    rest = rest.replace("-tolerance", ", tolerance ").replace("-unsplit", ", not split")
    return (LABELS.get(kind) or f"{KIND_LABELS[kind]} {order}") + rest


def ordered(arms: Iterable[str]) -> list[str]:
    """Return arms as tables list them."""
    return sorted(arms, key=lambda arm: (KINDS.index(_parts(arm)[0]), *_parts(arm)[1:]))


def _seconds(delays: Iterable[str]) -> list[str]:
    return sorted({delay for delay in delays if delay}, key=lambda delay: float(delay.removesuffix("s")))


# -------------------- cells


def in_range(values: Sequence[float], digits: int = 0, *, count: bool = True) -> str:
    """Write a mean, the lowest and the highest seed, and how many there are: 462 (448–476; 3)."""
    low, high = (f"{end:.{digits}f}" for end in (min(values), max(values)))
    return f"{np.mean(values):.{digits}f} ({low}–{high}" + f"; {len(values)})" * count + ")" * (not count)


def percent(values: Sequence[float]) -> str:
    """Write an accuracy, and the lowest and highest of several seeds: 98.6, 90.0 (89.8–90.2)."""
    shown = [100 * value for value in values]
    alike = f"{min(shown):.1f}" == f"{max(shown):.1f}"
    return f"{np.mean(shown):.1f}" if alike else in_range(shown, 1, count=False)


def with_error(values: Sequence[float], digits: int = 1) -> str:
    """Write a mean ± its standard error: 85.9 ± .6; with a digit more where one would say .0."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    text = f"{error:.{digits}f}"
    if digits == 1 and text == "0.0":
        text = f"{error:.2f}"
    return f"{np.mean(values):.{digits}f} ± {text}".replace(" 0.", " .").removeprefix("0" * (digits > 1))


def _table(heads: Sequence[str], rows: Sequence[list[str]], *, best: bool = False) -> str:
    """Write a table, if asked for with the highest score of each column bold; bounds are no rivals."""
    if best:
        rivals = [row for row in rows if row[0] not in LABELS.values() or row[0] == LABELS["et"]]
        for column in range(1, len(heads)):
            shown = [float(row[column].split()[0]) if row[column] != "–" else -np.inf for row in rivals]
            for row, value in zip(rivals, shown, strict=True):
                if value == max(shown):
                    row[column] = re.sub(r"^\S+", r"**\g<0>**", row[column])
    first, *others = (f"| {' | '.join(row)} |\n" for row in [heads, *rows])
    return "".join([first, f"|{'---|' * len(heads)}\n", *others])


# -------------------- tables


def returns(found: Scores) -> str:
    """Write training returns of arms by delays; the arm without delay counts at each."""
    delays = _seconds(delay for of_arm in found.values() for delay in of_arm)
    rows = [
        [
            label(arm),
            *(
                in_range(cell) if (cell := found[arm].get(delay) or found[arm].get("")) else "–"
                for delay in delays
            ),
        ]
        for arm in ordered(found)
    ]
    return _table(["training return", *(delay.replace("s", " s") for delay in delays)], rows)


def two_scores(training: Scores, evaluation: Scores, budget: str) -> str:
    """Write training returns and evaluations of arms, delay by delay."""
    delays = _seconds(delay for of_arm in training.values() for delay in of_arm)
    heads = [
        f"{budget} samples",
        *(f"{d.replace('s', ' s')}, {what}" for d in delays for what in ("training return", "evaluation")),
    ]
    rows = []
    for arm in ordered(training):
        cells = [label(arm)]
        for delay in delays:
            at = delay if delay in training[arm] else ""
            there = at in training[arm]
            cells += (
                [in_range(training[arm][at]), in_range(evaluation[arm][at], count=False)] if there else ["–", "–"]
            )
        rows.append(cells)
    return _table(heads, rows, best=True)


def accuracies(table: str) -> str:
    """Write test accuracies of arms by delays, in percent."""
    found = scores(table, "test_accuracy")
    delays = _seconds(delay for of_arm in found.values() for delay in of_arm)
    rows = [
        [
            label(arm),
            *(percent(cell) if (cell := found[arm].get(delay) or found[arm].get("")) else "–" for delay in delays),
        ]
        for arm in ordered(found)
    ]
    return _table(["test accuracy, %", *(delay.replace("s", " s") for delay in delays)], rows)


def sharpness(by_order: bool = False) -> str:
    """Write accuracies after 4,000 updates beside the share of each kernel's energy at the delay."""
    accuracy, share = (scores("traces-mnist", name, updates="4000") for name in ("test_accuracy", "sharpness"))

    def cell(arm: str, delay: str) -> str:
        shown = f"{100 * share[arm][delay][0]:.1f}".removeprefix("0").removesuffix(".0" * (arm == "perfect"))
        return f"{with_error([100 * each for each in accuracy[arm][delay]])} ({shown})"

    if by_order:
        orders = (2, 5, 10, 20)
        rows = [
            [KIND_LABELS[kind], *(cell(f"{kind}{order}", "10s") for order in orders)]
            for kind in ("legendre", "optimal")
        ]
        return _table(["at 10 s, by number of states", *map(str, orders)], rows)
    arms = [arm for arm in ordered(accuracy) if _parts(arm)[1] in (0, 10)]
    heads = "test accuracy after 4,000 updates, % (share of the kernel's energy at the delay, %)", "4 s", "10 s"
    return _table(heads, [[label(arm), *(cell(arm, delay) for delay in ("4s", "10s"))] for arm in arms], best=True)


def wrong_delay() -> str:
    """Write accuracies by the error of the delay that a trace is made for, and their mean within ±10 %."""
    found = scores("wrong-delay", "test_accuracy", "trace_delay")
    errors = {delay: round(100 * (float(delay.removesuffix("s")) / 8 - 1)) for delay in next(iter(found.values()))}
    delays = sorted(errors, key=errors.__getitem__)
    near = [delay for delay in delays if abs(errors[delay]) <= 10]
    rows = []
    for arm in ordered(found):
        by_seed = 100 * np.array([found[arm][delay] for delay in near])
        within = np.trapezoid(by_seed, [errors[delay] for delay in near], axis=0) / 20
        cells = [with_error([100 * each for each in found[arm][delay]]) for delay in delays]
        rows.append([label(arm), *cells, with_error(within, 2)])
    heads = [f"{errors[delay]:+d} %".replace("+0 %", "0") for delay in delays]
    return _table(["trace made for, relative to the delay", *heads, "mean within ±10 %"], rows, best=True)


def jitter() -> str:
    """Write accuracies by the range of true delays."""
    found = scores("jitter", "test_accuracy", "jitter")
    spreads = sorted(next(iter(found.values())), key=float)
    rows = [
        [label(arm), *(with_error([100 * each for each in found[arm][spread]]) for spread in spreads)]
        for arm in ordered(found)
    ]
    return _table(
        ["true delays within", *(f"±{100 * float(s):g} %".replace("±0 %", "±0") for s in spreads)], rows, best=True
    )


def rules() -> str:
    """Write test losses of every rule on Add and Mimic, beside the authors'."""
    ours = {task: scores(f"{task}-summary", "test_loss") for task in AUTHORS}
    rows = [
        [
            title,
            *(
                cell
                for task in AUTHORS
                for cell in (with_error(ours[task][rule][""], 4), AUTHORS[task].get(rule, "–"))
            ),
        ]
        for rule, title in RULES.items()
    ]
    heads = [
        "test loss, mean ± standard error of five seeds",
        "Add (3, 5)",
        "authors' code, one seed or two",
        "Mimic",
        "authors' code, one seed or two",
    ]
    return _table(heads, rows)


def late_add() -> str:
    """Write test losses where errors come twenty steps late, those of diverging runs one by one."""
    found = scores("late-add-summary", "test_loss")
    traces = [arm.removeprefix("rflo-") for arm in found if arm.startswith("rflo-")]

    def cell(values: Sequence[float]) -> str:
        diverged = [value for value in values if value > 1]
        if not diverged:
            return with_error(values, 4)
        others = ", ".join(f"{value:.3f}".removeprefix("0") for value in sorted(values) if value <= 1)
        return f"{others}, and one seed that diverged (loss {diverged[0]:.0f})"

    kinds = ("none", "perfect", "optimal", "legendre", "sharp", "cet", "et")
    rows = [
        [label(trace), *(cell(found[f"{rule}-{trace}"][""]) for rule in ("rflo", "dni"))]
        for trace in sorted(traces, key=lambda trace: (kinds.index(_parts(trace)[0]), -_parts(trace)[1]))
    ]
    return _table(["test loss, mean ± standard error of three seeds", "RFLO, rate 1e-2", "DNI, rate 1e-3"], rows)


def fig1(task: str, digits: int) -> str:
    """Write test losses of all seeds of Add or Mimic after a million steps."""
    found = scores(f"rules-fig1-{task}", "test_loss", "task")
    rows = []
    for rule in ("fixed-w", "rflo", "dni-b", "dni", "bptt", "rtrl"):
        values = found[rule][task]
        ends = [f"{end:.{digits}f}".removeprefix("0") for end in (min(values), max(values))]
        rows.append([RULES[rule], with_error(values, 4), "–".join(ends), str(len(values))])
    return _table(["test loss", "mean ± standard error", "range", "seeds"], rows)


def _games(name: str) -> tuple[Scores, Scores]:
    training, evaluation = (scores(f"{name}-summary", f"{kind}_return_mean") for kind in ("train", "eval"))
    return training, evaluation


TABLES: dict[str, Callable[[], str]] = {
    **{
        name: lambda name=name: returns(_games(name)[0])
        for name in ("cartpole", "space-invaders", "retrograde", "lunar-lander")
    },
    "cartpole-traces": lambda: two_scores(*_games("cartpole-traces"), "0.5 M"),
    **{name: lambda name=name: returns(known(name, "train_return_mean")) for name in FULL},
    "split-cartpole": lambda: two_scores(*_games("split-cartpole"), "1 M"),
    **{
        name: lambda name=name: accuracies(f"{name}-summary")
        for name in ("mnist", "beyond-mnist", "mnist-retrograde", "cifar10")
    },
    "traces-mnist": sharpness,
    "traces-mnist-orders": lambda: sharpness(by_order=True),
    "wrong-delay": wrong_delay,
    "jitter": jitter,
    "rules": rules,
    "late-add": late_add,
    "rules-fig1-add": lambda: fig1("add", 3),
    "rules-fig1-mimic": lambda: fig1("mimic", 4),
}
"""The functions that write each table, by its name."""


def phrases() -> dict[str, list[str]]:
    """Return, by page, parts of sentences with numbers as the data have them; spaces stand for line ends, too."""

    def at(table: str, arm: str, delay: str, score: str = "train_return_mean", digits: int = 0) -> str:
        factor = 100 if score == "test_accuracy" else 1
        return f"{factor * np.mean(scores(f'{table}-summary', score)[arm][delay]):.{digits}f}"

    poles = {arm: at("cartpole", arm, "32s") for arm in ("et", "cet2", "cet5", "cet10", "optimal10")}
    late = {arm: at("cartpole-traces", arm, "128s") for arm in ("cet10", "legendre10", "optimal10")}
    game = {arm: at("space-invaders", arm, "2s") for arm in ("cet10", "legendre10", "perfect")}
    ends = known("space-invaders-full", "train_return_mean")
    later = {arm: f"{np.mean(ends[arm]['2s'] or ends[arm]['']):.0f}" for arm in ends}
    latest = {arm: f"{np.mean(ends[arm]['8s']):.0f}" for arm in ends if ends[arm]["8s"]}
    full = known("cartpole-full", "train_return_mean")
    orders = [f"{np.mean(full[arm]['128s']):.0f}" for arm in ("et", "cet2", "cet5", "cet8", "cet10")]
    tried = known("cartpole-full", "eval_return_mean")
    cells = [(arm, delay, np.mean(tried[arm][delay])) for arm in ordered(tried) for delay in _seconds(tried[arm])]
    lost = [f"{label(arm)} at {d.replace('s', ' s')} ({mean:.0f})" for arm, d, mean in cells if mean < 499]
    prompt = f"{np.mean(full['none']['']):.0f}"
    soon = {arm: f"{np.mean(samples_to('cartpole-full', arm, '128s', 400)) / 1e6:.2f}" for arm in TEN}
    undelayed = at("space-invaders", "none", "")
    back = [at("retrograde", arm, "120s") for arm in ("et", "cet2", "cet5", "cet10")]
    ours = ("cet10", "sharp10", "legendre10", "optimal10", "perfect")
    cet, sharp, legendre, optimal, perfect = (at("mnist", arm, "10s", "test_accuracy", 1) for arm in ours)
    pictures = [at("cifar10", arm, "4s", "test_accuracy", 1) for arm in ("et", "cet10", "legendre10")]
    return {
        "README.md": [
            "CET is at {cet10}, Legendre at {legendre10} and **the optimal trace at {optimal10}**".format(**late),
            "end at {}, {}, {}, {} and {} there".format(*orders) + f", and learning without delay at {prompt}",
            "is at a return of 400 after {optimal10} million samples".format(**soon),
            "Legendre after {legendre10}, CET after {cet10}** (means".format(**soon),
            "({cet10} against {perfect})".format(**game),
            f"our Legendre trace reaches {game['legendre10']}**, about what the agent whose credit is not late at "
            f"all reaches ({undelayed})",
            "the classical trace is at {et} and cascades of two, five and eight states at {cet2}, {cet5} and "
            "{cet8}".format(**later),
            "CET 10 is at {cet10}, Legendre at {legendre10}, the optimal trace at {optimal10}, perfect memory at "
            "{perfect} and learning without delay at {none}".format(**later),
            "seconds perfect memory is at {perfect} and CET 10 at {cet10}".format(**latest),
            f"gets {cet} % of the test images right, **the same ten states read as SharpCET {sharp} %, as "
            f"Legendre {legendre} %, as the optimal trace {optimal} %**, perfect memory {perfect} %",
            "ends at {} % with ET, at {} % with CET 10 and at {} % with Legendre".format(*pictures),
        ],
        "docs/results.md": [
            "ET ends at {et}, CET 2 at {cet2}".format(**poles),
            "{}, {}, {}, {}, {}".format(*orders)
            + f", and ten states do as well as learning without delay ({prompt})",
            f"in each cell except {', '.join(lost)}",
            "SharpCET, Legendre and the optimal trace end at {optimal10} at 32 s".format(**poles),
            "({cet10} against {perfect})".format(**game),
            f"({game['legendre10']}, {game['perfect']}, {undelayed}; the ranges overlap)",
            "perfect memory ({cet10} against {perfect})".format(**later),
            "three quarters ({legendre10}), and the optimal trace nearer ({optimal10},".format(**later),
            "CET 10 ends at {cet10}, and two of its three seeds".format(**latest),
            "the classical trace at {et}. Perfect memory is at {perfect},".format(**latest),
            "two, five, eight and ten states end at {cet2}, {cet5}, {cet8} and {cet10}".format(**later),
            "{}, {}, {}, {} with one, two, five and ten states".format(*back),
        ],
    }


PLACE = re.compile(r"<!-- table: (\S+) -->\n+(?:\|.*\n)*\n*")


def written(page: str) -> str:
    """Return a page with its tables as the data have them."""
    return PLACE.sub(lambda found: f"<!-- table: {found[1]} -->\n\n{TABLES[found[1]]()}\n", page)


def pages() -> Iterator[tuple[Path, str]]:
    """Yield the pages that have tables, and what they should be."""
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if PLACE.search(text):
            yield page, written(text)


if __name__ == "__main__":
    for page, text in pages():
        write_text(page, text)

"""The cost model: what it chooses, and how its constants follow from measurements."""

import pytest
from conftest import assert_holds

from cet_rl import CET, FiniteKernel, Legendre
from cet_rl.cli import main
from cet_rl.credit import Convolution, Synapses, calibration, costs
from cet_rl.credit.calibration import Measurement, fit, measure

CARTPOLE, SPACE_INVADERS = {"num_envs": 4, "rollout": 128}, {"num_envs": 32, "rollout": 32}
MAPS = {"geometry": Convolution(4, 16, 3, (10, 10)), **SPACE_INVADERS}


@pytest.mark.parametrize(
    ("shape", "trace", "gamma_lam", "options", "chosen"),
    [
        ((256, 256), None, 0.94, CARTPOLE, "history"),
        ((256, 256), CET(5, 40), 0.94, CARTPOLE, "factored"),
        ((256, 256), CET(10, 640), 0.94, CARTPOLE, "chunk"),
        ((256, 256), CET(10, 40), 0.9999, CARTPOLE, "history"),  # e is heard of for too long
        ((600, 256), CET(5, 10), 0.94, SPACE_INVADERS, "history"),
        ((600, 256), CET(5, 40), 0.94, SPACE_INVADERS, "factored"),
        ((256, 256), CET(5, 40), 0.94, {"num_envs": 4}, "fused"),
        ((3, 2), FiniteKernel([0.1] * 80), 0.9, {"num_envs": 2}, "history"),  # no loop of so many states
        ((), CET(5, 10), 0.0, MAPS, "history"),  # no e to factor
        ((), CET(5, 40), 0.94, MAPS, "factored"),
    ],
)
def test_every_layer_chooses_by_operations_and_bytes(shape, trace, gamma_lam, options, chosen):
    layers = [Synapses(*shape, trace=trace, gamma_lam=gamma_lam, **options) for _ in range(2)]
    assert [layer.plan.form for layer in layers] == [chosen] * 2
    assert (layers[0].states is None) == (chosen in ("history", "factored"))


def test_a_silent_start_is_skipped_where_that_is_cheaper():
    delays = [
        Synapses(256, 256, trace, executor="history", **CARTPOLE).plan.onset
        for trace in (CET(5, 40), CET(10, 640))
    ]
    assert delays == [0, 114]


TRUE = {"products": 0.02, "states": 0.3, "numbers": 0.5, "calls": 2000.0, "loop": 0.05}


def test_the_fit_finds_the_constants_of_a_machine():
    found = []
    for trace in (CET(5, 40), CET(10, 10), Legendre(10, 40), None):
        for shape in ((256, 256, 4, 128), (64, 64, 4, 64), (256, 2, 2, 3)):
            n_in, n_out, envs, steps = shape
            options = {"gamma_lam": 0.9, "num_envs": envs}
            plans = {form: Synapses(n_in, n_out, trace, executor=form, **options).plan for form in costs.FORMS}
            times = {form: plan.nanoseconds(steps, TRUE) for form, plan in plans.items()}
            found.append(Measurement(shape, trace, plans, times))
    assert fit(found) == pytest.approx(TRUE, rel=1e-6)
    assert all(each.slowdown(TRUE) == 1 for each in found)
    assert max(each.slowdown() for each in found) > 1.2


def test_bench_prints_constants_and_where_the_choice_would_differ(monkeypatch, capsys):
    monkeypatch.setattr(calibration, "SHAPES", [(8, 16, 2, 4), (128, 128, 4, 32)])
    monkeypatch.setattr(calibration, "TRACES", [CET(5, 4)])
    monkeypatch.setattr(calibration, "fit", lambda found: dict.fromkeys(costs.NANOSECONDS, 0.0) | {"calls": 1.0})
    assert main(["bench", "--repeats", "1"]) == 0
    assert_holds(capsys.readouterr().out, *costs.NANOSECONDS, "128 × 128 × 4 × 32, CET", ", here fused")
    assert main(["bench", "--repeats", "0"]) == 2
    measurement = measure((8, 16, 2, 4), CET(5, 4), repeats=1)
    assert measurement.nanoseconds.keys() == measurement.plans.keys() >= {measurement.choice()}
    assert all(0 < time < 1e10 for time in measurement.nanoseconds.values())

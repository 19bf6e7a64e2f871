import pytest
from hypothesis import given
from hypothesis import strategies as st

from cet_rl import CreditTiming
from cet_rl.traces.timing import whole_steps


@given(steps=st.integers(0, 10_000), step_ms=st.sampled_from([200, 300, 50, 7]))
def test_whole_delays_are_exact(steps, step_ms):
    assert whole_steps(steps * step_ms / 1000, step_ms / 1000) == steps


def test_delays_of_the_paper():
    assert [whole_steps(T, 0.2) for T in (1.2, 2, 4, 8, 32, 64, 128)] == [6, 10, 20, 40, 160, 320, 640]


def test_uniform_and_stacked_layers():
    assert CreditTiming(8.0).layer_delays == (40, 40, 40)
    assert CreditTiming(120.0, 0.3, stacked=True).layer_delays == (800, 400, 0)
    assert CreditTiming(layers=2).layer_delays == (0, 0)


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        (r"nearest valid delays are 1\.2 s and 1\.4 s", [(1.3,)]),
        (r"nearest valid delays are 0 s and 0\.2 s", [(1e-11,), (1e-300,)]),
        ("stacked must be true or false, got 'no'", [(1.0, 0.2, "no")]),
        ("delay must be", [(-0.2,), (float("inf"),), (float("nan"),)]),
        ("step duration", [(1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))]),
    ],
)
def test_impossible_times_are_named(message, wrong):
    for times in wrong:
        with pytest.raises(ValueError, match=message):
            CreditTiming(*times)

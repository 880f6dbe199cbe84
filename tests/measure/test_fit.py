import numpy as np
import pytest

from pluribus.measure.fit import fit_line, round_figures, spread

SIZES = (64, 2**16, 2**20, 2**24)


def test_a_line_without_noise_is_found_exactly():
    latency, rate = fit_line(SIZES, [50e-6 + size / 2e9 for size in SIZES])
    assert latency == pytest.approx(50e-6, rel=1e-6)
    assert rate == pytest.approx(2e9, rel=1e-6)


def test_small_messages_keep_their_weight_beside_noisy_large_ones():
    seconds = [50e-6 + size / 2e9 for size in SIZES]
    seconds[-1] *= 1.2
    latency, _ = fit_line(SIZES, seconds)
    assert latency == pytest.approx(50e-6, rel=0.1)


def test_latency_is_never_negative():
    latency, rate = fit_line((1e6, 2e6, 3e6), (1e-3, 2.5e-3, 4e-3))
    assert latency == 0.0
    assert 0.7e9 < rate < 1e9


def test_a_larger_message_that_was_faster_still_gives_a_link():
    latency, rate = fit_line((1e6, 2e6), (2e-3, 1e-3))
    assert latency == 0.0
    assert rate > 0


def test_spread_is_half_the_middle_half_and_ignores_one_outlier():
    assert spread([1.0] * 9) == 0.0
    assert spread([1.0] * 9 + [50.0]) == 0.0
    assert spread(np.linspace(0.9, 1.1, 101)) == pytest.approx(0.05)


@pytest.mark.parametrize(("number", "rounded"), [(80.123, 80.1), (0.0212345, 0.0212), (0.0, 0.0)])
def test_round_figures(number, rounded):
    assert round_figures(number) == rounded

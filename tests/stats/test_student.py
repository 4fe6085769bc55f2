"""Student's t against scipy."""

import numpy as np
import pytest
from scipy import stats

from qeval.stats.student import t_cdf, t_p_value, t_quantile


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 12, 99, 100, 1999])
def test_the_distribution_is_scipys(df):
    for x in (-40.0, -2.5, -0.3, 0.0, 0.7, 1.96, 6.0):
        assert t_cdf(x, df) == pytest.approx(stats.t.cdf(x, df), abs=1e-12)
        assert t_p_value(x, df) == pytest.approx(2 * stats.t.sf(abs(x), df), abs=1e-12)
    for p in (0.001, 0.2, 0.5, 0.8, 0.95, 0.975, 0.9995):
        assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-8, abs=1e-9)


def test_many_degrees_of_freedom_are_the_normal_distribution():
    assert t_quantile(0.975, 10**6) == pytest.approx(1.959963984540054, abs=1e-8)
    assert abs(t_quantile(0.975, 2000) - t_quantile(0.975, 2001)) < 2e-3


def test_what_is_no_distribution_is_refused():
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_cdf(0.0, 0)
    for p in (0.0, 1.0, np.nan):
        with pytest.raises(ValueError, match="no quantile"):
            t_quantile(p, 3)

"""Windows of a server that was asked before are not asked for again."""

from __future__ import annotations

import numpy as np
import pytest

from qeval.tasks.kept_windows import FILE, nll_of

WINDOWS = [[i, i + 1, i + 2] for i in range(5)]


class Asked:
    """The NLL of a token is a third of its id, of token 4 not finite; dies before window ``dies``."""

    def __init__(self, dies: int | None = None) -> None:
        self.dies, self.windows = dies, []

    def nll(self, windows, *, first):
        for ids in windows:
            if ids[0] == self.dies:
                raise KeyboardInterrupt
            self.windows.append(ids)
            yield np.array([np.nan if i == 4 else i / 3 for i in ids[first:]], np.float32)


def test_a_second_run_asks_for_the_rest(tmp_path):
    whole = list(nll_of(Asked(), WINDOWS, 1, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        list(nll_of(Asked(dies=3), WINDOWS, 1, tmp_path / "killed"))
    with (tmp_path / "killed" / FILE).open("a") as file:
        file.write('{"window": 3, "nll": [1.')  # torn
    second = Asked()
    mended = list(nll_of(second, WINDOWS, 1, tmp_path / "killed"))
    assert second.windows == WINDOWS[3:]
    np.testing.assert_array_equal(mended, whole)
    assert mended[0].dtype == np.float32 and np.isnan(mended[2][1])
    third = Asked()
    np.testing.assert_array_equal(list(nll_of(third, WINDOWS, 1, tmp_path / "killed")), whole)
    assert third.windows == []

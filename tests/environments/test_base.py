"""gymnax is imported without plotting libraries, and can still plot."""

import subprocess
import sys

import pytest

from jaxmarket.environments import base

CODE = """
import sys
from jaxmarket.environments import make
env, params = make("Catch-bsuite")
print(sorted({"matplotlib", "seaborn", "pandas", "scipy.stats"} & set(sys.modules)))
import jax, matplotlib
matplotlib.use("Agg")
_, state = env.reset(jax.random.key(0), params)
figure, _ = env.render(state, params)
import matplotlib.pyplot as plt, seaborn
from matplotlib import colors
from gymnax.environments.misc import pong
print(plt.gcf() is figure, pong.sns.color_palette is seaborn.color_palette, pong.colors.Colormap is colors.Colormap)
"""


@pytest.mark.slow
def test_plotting_libraries_are_imported_when_gymnax_plots():
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[]", "True True True"]


def test_libraries_that_are_imported_already_stay(monkeypatch):
    monkeypatch.delitem(sys.modules, "gymnax", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", sys)
    monkeypatch.delitem(sys.modules, "seaborn", raising=False)
    with base._without_plotting():
        assert sys.modules["matplotlib"] is sys
        assert "seaborn" not in sys.modules

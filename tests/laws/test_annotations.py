"""Laws of annotated shapes: they are checked in tests, and no comment takes their place."""

import re
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

import jaxmarket
from jaxmarket import auctions
from jaxmarket.deep_market.representations import BidTable, BidTables
from jaxmarket.learners.protocol import mean_where
from jaxmarket.networks.backpropagation import spectral_radius
from jaxmarket.training.wide import workers
from jaxmarket.wide_market.equilibrium import ration

WRONG = {
    "core": lambda: auctions.pick(None, jnp.ones((2, 2), bool)),
    "learners": lambda: mean_where(jnp.ones(3), jnp.ones(2, bool)),
    "deep_market": lambda: BidTables(2, 2).bid(BidTable(jnp.ones(2), jnp.zeros((), jnp.int32)), jnp.eye(2), 1.0),
    "wide_market": lambda: ration(jnp.ones((2, 3)), jnp.ones((3, 2))),
    "networks": lambda: spectral_radius(jnp.ones((2, 3))),
    "training": lambda: workers(None, jnp.ones(3), 1),
}


@pytest.mark.parametrize("package", WRONG)
def test_a_wrong_shape_is_noticed(package):
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[package]()


def test_shapes_of_arrays_are_annotations_and_not_comments():
    comment = re.compile(r"^ +\w+: Array\b.*# *(?:f|bool|[iu]\d+) \[.*", re.MULTILINE)
    found = {
        path.name: comment.findall(path.read_text())
        for path in Path(jaxmarket.__file__).parent.rglob("*.py")
        if comment.search(path.read_text())
    }
    assert not found

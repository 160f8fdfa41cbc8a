"""What all modules share: a property that is computed once."""

import threading

from jaxmarket.types import cached_property


def computed(self):
    self.calls += 1
    if self.meet is not None:
        self.meet.wait(timeout=10)
    return self.amount + (0 if self.inner is None else self.inner.value)


class Outer:
    """Its property takes that of another object, as a configuration does with its environment."""

    amount = 1
    value = cached_property(computed)

    def __init__(self, inner=None, meet=None):
        self.inner, self.meet, self.calls = inner, meet, 0


class Inner(Outer):
    amount = 10
    value = cached_property(computed)


def test_a_property_is_computed_once_for_each_object():
    first, second = Outer(), Outer(Inner())
    assert [first.value, first.value, second.value, second.value] == [1, 1, 11, 11]
    assert first.calls == second.calls == 1 and isinstance(Outer.value, cached_property)


def test_threads_do_not_wait_for_each_other():
    """One goes from a configuration to an environment, the other one from an environment to a configuration."""
    meet = threading.Barrier(2)
    objects = [Outer(Inner(), meet), Inner(Outer(), meet)]
    threads = [threading.Thread(target=lambda each=each: each.value, daemon=True) for each in objects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert [each.__dict__.get("value") for each in objects] == [11, 11]

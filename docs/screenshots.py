"""The pictures of docs/replay.md: the replay page of six markets in Chromium, light, dark and narrow.

    pip install -e '.[all,browser]'           # and Chromium with its driver, from the distribution's packages
    python docs/screenshots.py                # all pictures, in docs/images/replay; some minutes
    python docs/screenshots.py chain host     # those of two markets

Each market is trained for a short time first, with fixed seeds.
"""

import dataclasses
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from jaxmarket import TrainConfig, fit, host
from jaxmarket.environments.blocks import BlocksWorld
from jaxmarket.experiments import hayek
from jaxmarket.host.example import learn_arithmetic
from jaxmarket.training.population import PopulationAgents
from jaxmarket.view.replay import Replay

__all__ = ["MARKETS", "VIEWS", "chromium", "main", "screenshot"]

IMAGES = Path(__file__).parent / "images" / "replay"

VIEWS = {"light": ("light", 1180), "dark": ("dark", 1180), "narrow": ("light", 400)}
"""The system's colours and the width of the window, in pixels."""


def _trained(env: Any, steps: int, *, seed: int = 0, **settings: Any) -> Replay:
    result = fit(TrainConfig(env, steps=steps, **settings), jax.random.key(0), progress=False)
    return result.watch(seed=seed)


def _hayek() -> Replay:
    plan = hayek.plans(quick=True)["hayek"]
    agents = PopulationAgents(hayek.PROGRAMS, plan.market.capacity, plan.terms, num_agents=plan.num_agents)
    env = BlocksWorld(tuple(range(1, hayek.TRAINED + 1)), sensors=hayek.SENSORS)
    return _trained(env, 500_000, agent=agents, instances=1, horizon=plan.period, seeds=4)


def _host() -> Replay:
    records: list[host.Record] = []
    learn_arithmetic(log=records.append)
    replay = host.replay(records)
    return dataclasses.replace(replay, episodes=replay.episodes[-1:])


MARKETS: dict[str, tuple[Callable[[], Replay], int]] = {
    "chain": (lambda: _trained("Chain-v0", 245_760, seeds=2, learner="valuation"), 2),
    "two-rooms": (lambda: _trained("TwoRooms-Green-v0", 400_000, learner="valuation", seed=3), 4),
    "mental-rotation": (lambda: _trained("MentalRotation-v0", 200_000, learner="valuation"), 1),
    "hayek": (_hayek, 3),
    "wide": (lambda: _trained("SupplyChain2-v0", 200_000, agent="wide"), 7),
    "host": (_host, 7),
}
"""The replay of each market, and the step that is shown."""


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A driver of the distribution's Chromium, without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars", "window-size=1200,1000"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def screenshot(driver: webdriver.Chrome, page: Path, step: int, colours: str, width: int) -> Image.Image:
    """The whole page at one step of the first episode, in a palette of 256 colours."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": colours}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver.get(page.as_uri())
    driver.execute_script("for (let i = 0; i < arguments[0]; i++) document.getElementById('forth').click()", step)
    height = driver.execute_script("return document.documentElement.scrollHeight")
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics | {"height": height})
    taken = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    return taken.quantize(256, kmeans=1, dither=Image.Dither.NONE)  # means: thin lines keep their colours


def main(names: list[str]) -> None:
    """Write the pictures of these markets, by default of all."""
    with tempfile.TemporaryDirectory() as folder, chromium() as driver:
        for name in names or MARKETS:
            replay, step = MARKETS[name]
            page = replay().save(Path(folder) / f"{name}.html")
            for view, (colours, width) in VIEWS.items():
                path = IMAGES / f"{name}-{view}.png"
                screenshot(driver, page, step, colours, width).save(path, optimize=True)
                print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])

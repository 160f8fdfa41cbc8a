"""The numbers in the README are those of stored results."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = " ".join((ROOT / "README.md").read_text().split())
OTHERS = {"3.11", "2020", "2025"}  # the version of Python, years of publications


def benchmark(name):
    return json.loads((ROOT / "benchmarks" / "results" / "cpu" / f"{name}.json").read_text())


def stored(experiment):
    return json.loads((ROOT / "docs" / "reproductions" / "results" / f"{experiment}.json").read_text())


def rows(experiment, table, **equal):
    """The rows of a stored table with these values."""
    (found,) = (each["rows"] for each in stored(experiment)["tables"] if each["name"] == table)
    return [row for row in found if all(row[column] == value for column, value in equal.items())]


def scoreboard():
    board = [row for row in benchmark("scoreboard") if row["agent"] == "society"]
    ahead = sum(row["difference low"] > 0 for row in board)
    behind = sum(row["difference high"] < 0 for row in board)
    return (
        f"with no option given, a society returns more than the better of two single agents, PPO and Q(λ), on {ahead} "
        f"of {len(board)} tasks, less on {behind}, and cannot be distinguished from it on "
        f"{len(board) - ahead - behind}."
    )


def identities():
    found = rows("identities", "identities")
    error = max(row["largest error"] for row in found)
    return (
        "Vickrey auctions among clones compute Q-learning, first-price auctions expected SARSA, the taxed bucket "
        f"brigade TD(0): the fixed points are equal to {error:.0e} on {stored('identities')['seeds']} random processes."
    )


def modularity():
    def range_of(arm):
        steps = [row["k steps after"] for row in rows("modularity", "transfers", arm=arm)]
        return f"{min(steps):.1f} to {max(steps):.1f} k steps"

    return (
        "when one of three decisions changes, `valuation` societies succeed in 90% of episodes again after "
        f"{range_of('society valuation')}, one PPO agent after {range_of('flat')}, or after "
        f"{range_of('flat-exploring')} with more entropy."
    )


def truthfulness():
    cloned = rows("truthfulness", "episode", society="cloned")
    most = max(row[auction] for row in cloned for auction in ("bb", "ccv"))
    assert most < 1e-9
    (chain,) = (row for row in cloned if row["process"] == "Chain")
    return (
        "among truthful clones no bidder gains by any deviation over a whole episode under first price and "
        f"credit-conserving Vickrey; under Vickrey with minted money it gains up to {chain['vickrey']:.2f} on Chain."
    )


def capitalism():
    arms = {row["arm"]: row["accuracy"] for row in rows("capitalism", "capitalism")}
    return (
        f"layers of a network that live on their sales classify {arms['capitalism']:.2f} of digits without a gradient, "
        f"SGD {arms['SGD']:.2f}; with gradients, the market's structures are no better than random ones "
        f"({arms['SGD, structure found']:.2f} and {arms['SGD, random structure']:.2f})."
    )


def hayek():
    reach = {row["who"]: row["reliable"] for row in rows("hayek-expressions", "hayek-expressions")}
    return (
        "economies of expressions that learn their bids, trained with at most 5 blocks, solve at least 90% of "
        f"instances with up to {reach['market']:.1f} blocks on average over {stored('hayek-expressions')['seeds']} "
        f"seeds; evolution of whole teams with as many steps, up to {reach['selection only']:.1f}."
    )


def speed():
    found = benchmark("rivals")
    beta, kumaraswamy = (found[f"{name}_steps_per_second"] / 1e6 for name in ("beta", "kumaraswamy"))
    return (
        f"**Speed**: with the settings of Chang et al. (2020), one CPU core trains {beta:.2f} M auctions per second "
        f"with Beta bids and {kumaraswamy:.1f} M with Kumaraswamy bids, {found['beta_over_torch']:.1f} and "
        f"{found['kumaraswamy_over_torch']:.0f} times as many as the same algorithm vectorised in NumPy and PyTorch."
    )


STATEMENTS = (scoreboard, identities, truthfulness, modularity, capitalism, hayek, speed)


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda statement: statement.__name__)
def test_a_statement_has_the_stored_numbers(statement):
    assert statement() in README


def test_every_number_is_in_a_statement():
    rest = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", README)
    for statement in STATEMENTS:
        rest = rest.replace(re.sub(r"`[^`]*`", "", statement()), "")
    assert set(re.findall(r"(?<![\w-])\.?\d[\d.,]*", rest)) - OTHERS == set()

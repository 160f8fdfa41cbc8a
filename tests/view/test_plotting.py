"""Figures show the numbers they are given."""

import types

import numpy as np

from jaxmarket.deep_market import Lineage
from jaxmarket.runs.estimates import Estimate
from jaxmarket.training import programs
from jaxmarket.view import plotting


def lines(ax):
    return {line.get_label(): np.asarray(line.get_xydata()) for line in ax.get_lines()}


def test_prices_by_round(tmp_path):
    fig, (ax,) = plotting.figure()
    plotting.draw_prices(ax, np.array([[1.0, np.nan], [2.0, 3.0]]), ["grain", "bread"])
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["grain"], [[1, 1], [2, 2]])
    np.testing.assert_array_equal(drawn["bread"], [[1, np.nan], [2, 3]])
    plotting.save(fig, tmp_path / "prices.png")
    assert (tmp_path / "prices.png").stat().st_size > 1_000


def test_convergence_is_the_size_of_excess_demand():
    _, (ax,) = plotting.figure()
    plotting.draw_convergence(ax, np.array([[-0.5], [0.1], [0.0]]), tolerance=1e-3)
    drawn = lines(ax)
    np.testing.assert_array_equal(drawn["good 0"], [[0, 0.5], [1, 0.1], [2, np.nan]])  # 0 has no logarithm
    np.testing.assert_array_equal(drawn["tolerance"][:, 1], 1e-3)
    assert ax.get_yscale() == "log"


def test_a_spread_that_falls_with_the_square_root_lies_on_the_line():
    _, (ax,) = plotting.figure()
    agents = np.array([4.0, 16.0, 64.0])
    plotting.draw_price_stability(ax, agents, 0.3 / np.sqrt(agents)[:, None], ["grain"])
    drawn = lines(ax)
    np.testing.assert_allclose(drawn["grain"], drawn["1 / √N"])
    np.testing.assert_allclose(drawn["grain"][:, 1], [0.15, 0.075, 0.0375])


def test_accuracy_is_a_mean_over_seeds_and_chance_a_line():
    _, (ax,) = plotting.figure()
    plotting.draw_accuracy(ax, {"SGD": ([64, 128], np.array([[0.1, 0.3], [0.5, 0.9]]))}, chance=0.1)
    np.testing.assert_allclose(lines(ax)["SGD"], [[64, 0.2], [128, 0.7]])
    assert ax.get_lines()[-1].get_ydata()[0] == 0.1


def test_gains_are_bars_with_a_dot_for_each_seed():
    _, (ax,) = plotting.figure()
    plotting.draw_gains(ax, ["left", "right"], [1.0, 2.0], [[0.5, 0.6], [1.5, 2.0]])
    assert [bar.get_height() for bar in ax.patches] == [1, 2]
    np.testing.assert_array_equal(lines(ax)["trained, each seed"], [[-0.2, 0.5], [0.2, 0.6]])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["left", "right"]


def test_a_strategy_is_drawn_by_state_and_owner():
    bids = np.arange(2 * 3 * 3 * 2.0).reshape(2, 3, 3, 2)  # seeds, times, states, ownership
    _, (ax,) = plotting.figure()
    plotting.draw_strategy(ax, {"learned": bids, "best": bids[0], "truth": bids[1]}, [0, 2], [1, 2])
    drawn = [tuple(line.get_ydata()) for line in ax.get_lines() if len(line.get_ydata())]
    assert {tuple(bids[:, t, s, owns]) for t, s in ((0, 1), (2, 2)) for owns in (0, 1)} < set(drawn)
    assert {(bids[0, t, s, owns],) for t, s in ((0, 1), (2, 2)) for owns in (0, 1)} < set(drawn)
    (truth,) = ax.collections
    assert [segment[0, 1] for segment in truth.get_segments()] == [bids[1, 0, 1, 0], bids[1, 2, 2, 0]]


def test_costs_by_size_have_a_tick_for_each_size():
    _, (ax,) = plotting.figure()
    cost = Estimate(3.0, 2.0, 5.0)
    plotting.draw_scaling(ax, {"deep": {1: cost, 4: cost}, "none": {}, "wide": {2: cost}})
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]
    assert ax.get_legend_handles_labels()[1] == ["deep", "wide"] and ax.get_yscale() == "log"


def test_prices_by_stage_and_what_pieces_are_worth():
    _, (ax,) = plotting.figure()
    plotting.draw_stage_prices(ax, {"learned": np.array([[[1.0, 2.0]], [[3.0, 4.0]]])}, np.array([2.0, 3.0]))
    np.testing.assert_array_equal(lines(ax)["discounted value"], [[0, 2], [1, 3]])
    points = [line.get_ydata().tolist() for line in ax.get_lines()]
    assert [1, 2] in points and [3, 4] in points


NAME = "a$b$c_{ \\frac \x1b\u202e\n"


def test_names_are_no_formulas(tmp_path):
    fig, (left, right) = plotting.figure(columns=2)
    steps = np.arange(3.0)
    names = [NAME, "_hidden", "x" * 300]
    plotting.draw_return_curves(left, dict.fromkeys(names, (steps, steps, steps, steps)))
    plotting.draw_final_returns(right, dict.fromkeys(names, steps), dict.fromkeys(names, (1.0, 0.0, 2.0)))
    left.set_title(plotting.plain_text(NAME))
    plotting.save(fig, tmp_path / "figure.png")  # a formula that does not end raises an error here
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == [r"a\$b\$c_{ \frac \x1b\u202e\n", " _hidden", "x" * 40 + "…" + "x" * 40]
    assert not plotting.plain_text(NAME).count("$") - plotting.plain_text(NAME).count(r"\$")


def test_a_figure_is_where_it_was_asked_for(tmp_path):
    for name, begins in (("plain", b"\x89PNG"), ("run.v2", b"\x89PNG"), ("a.pdf", b"%PDF"), ("b.PNG", b"\x89PNG")):
        plotting.save(plotting.figure()[0], tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_user_s_tex_is_not_needed(tmp_path):
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context({"text.usetex": True}):
        fig, (ax,) = plotting.figure()
        plotting.draw_prices(ax, np.ones((2, 1)), ["learning_rate"])
        plotting.save(fig, tmp_path / "figure.png")


def test_legend_below_names_every_label_once():
    fig, axes = plotting.figure(columns=2)
    for ax in axes:
        plotting.draw_band(ax, [0, 1], [1, 2], [0, 1], [2, 3], color="C0", label="same")
    axes[1].plot([0, 1], [0, 1], label="other")
    plotting.legend_below(fig)
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["same", "other"]
    band = axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.ymin, band.ymax) == (0, 3)


def test_a_legend_below_a_panel_is_outside_of_it():
    fig, axes = plotting.figure(columns=2, width=2.5, height=2)
    for ax in axes:
        for name in ("a curve with a rather long name", "another curve"):
            ax.plot([0, 1], [0, 1], label=name)
        plotting.step_axis(ax)
        plotting.legend_below(ax)
    fig.draw_without_rendering()
    for ax in axes:
        legend = ax.get_legend().get_window_extent()
        assert legend.y1 < ax.xaxis.label.get_window_extent().y0
        assert legend.y0 >= 0 and ax.get_legend().get_window_extent().width < 1.1 * fig.bbox.width / 2


def test_an_axis_of_counts_has_whole_numbers():
    fig, (few, many) = plotting.figure(columns=2)
    for ax, most in ((few, 3), (many, 2_000_000)):
        ax.plot([1, most], [0, 1])
        plotting.step_axis(ax)
    fig.draw_without_rendering()
    assert {label.get_text() for label in few.get_xticklabels()} <= set("01234")
    assert "1M" in {label.get_text() for label in many.get_xticklabels()}


def test_an_auction_has_its_colour_whatever_it_is_compared_with():
    for names in (
        ["bb", "ccv"],
        ["a society", "auction=ccv,lr=0.1", "auction=bb,lr=0.1"],
        ["ccv, 2 clones", "bb, 1 bidder"],
    ):
        found = plotting.series_colors(names)
        assert len(set(found.values())) == len(names)
        assert {found[name] for name in names[-2:]} == {plotting.NAMED_COLORS[name] for name in ("bb", "ccv")}
    assert [*plotting.series_colors(["env=a", "b"]).values()] == [*plotting.COLORS[:2]]  # no auctions
    assert [*plotting.series_colors(["ccv, 1", "ccv, 2"]).values()] == [*plotting.COLORS[:2]]  # it cannot be both
    assert len({*map(tuple, plotting.series_colors(map(str, range(30))).values())}) == 30


def test_colours_of_neighbours_differ_for_the_colour_blind():
    from matplotlib.colors import to_rgb  # noqa: PLC0415

    rgb = np.array([to_rgb(color) for color in plotting.COLORS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    deuteranopia = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]  # Machado et al. 2009
    seen = np.clip(linear @ np.transpose(deuteranopia), 0, 1) ** (1 / 2.2)
    assert np.linalg.norm(np.diff(seen, axis=0), axis=1).min() > 0.25


def test_the_style_of_figures_leaves_the_user_s_settings():
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context():
        mpl.rcdefaults()
        before = dict(mpl.rcParams)
        _, (ax,) = plotting.figure()
        assert dict(mpl.rcParams) == before
    assert ax.plot([0, 1])[0].get_color() == plotting.COLORS[0]
    assert not ax.spines["top"].get_visible()


def test_the_lines_of_a_family_tree_do_not_cross():
    draw = np.random.default_rng(0)
    births = types.SimpleNamespace(ident=np.arange(1, 40), parent=np.array([draw.integers(n) for n in range(1, 40)]))
    births.kind = np.zeros(39, int)
    _, (ax,) = plotting.figure()
    plotting.draw_lineage(ax, Lineage(types.SimpleNamespace(**{k: v[:, None] for k, v in vars(births).items()}), 1), 39)
    lines = [np.array(line.get_data()) for line in ax.get_lines() if len(line.get_xdata()) == 2]
    across, down = ([x for x in lines if (x[axis, 0] == x[axis, 1])] for axis in (1, 0))
    assert len(across) == len(down) == 39
    for (start, end), (row, _) in across:
        for (time, _), (top, bottom) in down:
            assert not (start < time < end and top < row < bottom)
    assert "40 agents" in ax.get_title()


def test_curves_of_a_metric_are_medians_against_environment_steps():
    rate = np.array([[0.1, 0.2, 0.6], [0.5, 0.9, 0.7]])
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(settings=types.SimpleNamespace(auctions_per_chunk=100)),
        metrics={"rate": rate, "duration": np.full((2, 3), 2.0)},
    )
    _, (ax,) = plotting.figure()
    plotting.draw_metric_curves(
        ax, {"one": run, "other": run}, "rate", title="rates", levels={"most": 0.9, "least": 0.1}
    )
    drawn = lines(ax)
    assert list(drawn) == ["one", "other", "most", "least"]
    assert [(line.get_ydata()[0], line.get_linestyle()) for line in ax.get_lines()[2:]] == [(0.9, ":"), (0.1, "--")]
    np.testing.assert_allclose(drawn["one"], [[200, 0.2], [400, 0.7]])
    assert (ax.get_xscale(), ax.get_title()) == ("log", "rates")


def test_composed_images_have_the_choice_that_led_to_them(monkeypatch):
    """The first program stops after one function; the second one applies two and has no choice left."""
    made = types.SimpleNamespace(
        choices=np.array([[0, 2], [1, 0]]), applied=np.array([1, 2]), values=np.zeros((2, 3, 4, 4))
    )
    bids = np.array([[[0.5, 0, 0], [0, 0, 0.75]], [[0, 0.25, 0], [1, 0, 0]]])
    monkeypatch.setattr(programs, "compose_all", lambda env, policy, examples, keep: (made, bids))
    env = types.SimpleNamespace(
        combinations=(0, 1),
        held_out=np.array([7, 8, 9]),
        names=("left", "right", "stop"),
        describe=lambda c: f"case {c}",
        reader=lambda image: np.eye(10)[3],
        digits=types.SimpleNamespace(labels=np.array([0, 0, 0, 0, 0, 0, 0, 3, 5])),
    )
    fig = plotting.composed_images(env, None)
    assert [ax.get_title() for ax in fig.axes] == [
        "case 0",
        "left (0.50)\nstop (0.75)\nread: 3",
        "",
        "case 1",
        "right (0.25)",
        "left (1.00)\nread: 3, is 5",
    ]


def test_winners_are_bars_that_fill_the_width_of_each_region():
    counts = np.array([[3.0, 1.0, 0.0], [0.0, 5.0, 5.0]])
    _, (ax,) = plotting.figure()
    plotting.draw_winners(ax, counts, ["left", "right"], ["a", "b", "c"], title="who")
    bars = np.array([[(bar.get_x(), bar.get_width()) for bar in part] for part in ax.containers])  # [P, R, 2]
    np.testing.assert_allclose(bars[..., 1].T, [[0.75, 0.25, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(bars[..., 0].T, [[0, 0.75, 1], [0, 0, 0.5]])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["left", "right"]

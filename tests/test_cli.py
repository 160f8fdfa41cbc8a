"""The command line: options, output, exit codes and JSON."""

import dataclasses
import io
import json
import os
import subprocess
import sys

import pytest

from jaxmarket import cli
from jaxmarket.cli import main
from jaxmarket.host import CallableAgent, Market, json_lines

QUICK = ["--steps", "4096", "--instances", "8", "--horizon", "16", "--minibatch", "32"]


def test_train_ends_with_one_json_line(capsys, tmp_path):
    main(
        ["train", "Bandit-v0", "--learner", "valuation", "--seeds", "2", "--json", "--out", str(tmp_path / "r"), *QUICK]
    )
    printed, bar = capsys.readouterr()
    summary = json.loads(printed.splitlines()[-1])
    assert summary["env"] == "Bandit-v0"
    assert (summary["seeds"], summary["clones"], summary["auction"]) == (2, 2, "ccv")
    assert "Q*" in printed
    assert "bid error" in printed
    assert "Bandit-v0" in bar


def test_evaluate_and_watch_a_saved_run(capsys, bandit_run):
    main(["evaluate", str(bandit_run[1]), "--json"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["greedy_return_mean"] == pytest.approx(0.8)
    main(["watch", str(bandit_run[1])])
    printed = capsys.readouterr().out
    assert "auctioneer" in printed
    assert "terminated" in printed
    assert "0.800" in printed


def test_as_many_episodes_of_a_log_are_shown_as_the_user_says(tmp_path, capsys):
    path, page = tmp_path / "market.jsonl", tmp_path / "page.html"
    agent = CallableAgent("adder", bid=lambda state, budget: 0.5, act=lambda state: state + 1, wealth=2.0)
    with json_lines(path) as log:
        market = Market([agent], reward=float, done=lambda state: True, log=log)
        for _ in range(5):
            market.play(0)
    for words, episodes in (([], 5), (["--episodes", "2"], 2)):
        main(["watch", str(path), "--html", str(page), *words])
        assert f"{episodes} episodes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["watch", str(path)])
    assert "add --html FILE" in capsys.readouterr().err


def test_whole_floats_are_counts(monkeypatch):
    seen = []
    monkeypatch.setattr("jaxmarket.cli.fit", lambda config, *_, **__: seen.append(config) or pytest.fail("enough"))
    words = ["--steps", "1e6", "--clones", "3.0", "--no-share-clones", "--hidden", "8", "--hidden", "4e0"]
    with pytest.raises(pytest.fail.Exception):
        main(["train", "Chain-v0", *words, "--devices", "1"])
    (config,) = seen
    assert (config.steps, config.clones, config.share_clones, config.hidden) == (1_000_000, 3, False, (8, 4))
    assert type(config.steps) is int


def test_list_names_everything(capsys):
    main(["list"])
    printed = capsys.readouterr().out
    for name in ("Chain-v0", "CartPole-v1", "ccv", "valuation", "paper"):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "env"),
        (["train", "Chain-v1"], "did you mean 'Chain-v0'"),
        (["train", "Pendulum-v1", "--agent", "population"], "discrete"),
        (["train", "Chain-v0", "--auction", "dutch"], "bb, vickrey, ccv, env"),
        (["train", "Chain-v0", "--learner", "sarsa"], "ppo, valuation, reinforce"),
        (["train", "Chain-v0", "--clones", "0"], "clones"),
        (["train", "Chain-v0", "--clones", "1.5"], "--clones"),
        (["train", "Chain-v0", "--steps", "1e6.5"], "--steps"),
        (["train", "Chain-v0", "--steps", "1e400"], "--steps"),
        (
            ["train", "Chain-v0", "--agent", "monolith", "--auction", "ccv"],
            "auction: agent monolith has no such setting",
        ),
        (["train", "Chain-v0", "--agent", "monolith", "--clones", "2"], "clones: agent monolith"),
        (["train", "Chain-v0", "--agent", "monolith", "--share-clones"], "share_clones: agent monolith"),
        (["train", "Chain-v0", "--agent", "monolith", "--ties", "random"], "ties: agent monolith"),
        (["train", "Chain-v0", "--agent", "monolith", "--bids", "beta"], "bids: agent monolith"),
        (["train", "Chain-v0", "--seeds", "two"], "--seeds"),
        (["train", "Chain-v0", "--steps", "-5"], "steps"),
        (["train", "Chain-v0", "--gamma", "1.5"], "gamma"),
        (["train", "Chain-v0", "--gamma", "nan"], "gamma"),
        (["train", "Chain-v0", "--minibatch", "1000"], "minibatch"),
        (["train", "Chain-v0", "--bids", "beta"], "bids"),
        (["train", "Chain-v0", "--learner", "ppo", "--bid-low", "2"], "bid_low"),
        (["train", "Chain-v0", "--time-limits", "never"], "time-limits"),
        (["train", "Chain-v0", "--preset", "mine"], "preset"),
        (["train", "Chain-v0", "--learner", "valuation", "--clip", "0.3"], "clip"),
        (["train", "Chain-v0", "--dropout", "0.5", "--clones", "1"], "dropout"),
        (["train", "Chain-v0", "--colour", "red"], "--colour"),
        (["evaluate", "/nowhere"], "/nowhere"),
        (["watch", "/nowhere"], "/nowhere"),
        (["trian"], "train"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed, error = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed == ""
    assert error.startswith("jaxmarket: ")
    assert error.count("\n") == 1
    assert says in error


def test_objects_of_an_imported_module(tmp_path, monkeypatch, capsys):
    """`--import` makes objects available as module:name; without it, they are an error that says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    seen = []
    monkeypatch.setattr(cli, "fit", lambda config, *_, **__: seen.append(config) or sys.exit(0))
    for words, code in ((["train", "corridor:chain"], 2), (["train", "Chain-v0", "--import", "no_such_module"], 2)):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == code
        assert "import" in capsys.readouterr().err
    (tmp_path / "corridor.py").write_text("from jaxmarket.environments import Chain\n\nchain = Chain()\n")
    with pytest.raises(SystemExit):
        main(["train", "corridor:chain", "--import=corridor", "--learner", "valuation"])
    assert seen[0].adapter.env is sys.modules.pop("corridor").chain


def test_module_entry_and_exit_code():
    run = subprocess.run([sys.executable, "-m", "jaxmarket", "trian"], check=False, capture_output=True, text=True)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


def test_import_is_inert_and_light():
    """The import starts no JAX backend, and imports no large or graphical package."""
    code = (
        "import sys, jaxmarket, jaxmarket.auctions, jaxmarket.environments, jaxmarket.learners, jaxmarket.policies, "
        "jaxmarket.metrics, jaxmarket.testing\n"
        "from jax._src import xla_bridge\n"
        "heavy = {'matplotlib', 'gymnasium', 'pandas', 'gymnax', 'orbax', 'cyclopts'} & set(sys.modules)\n"
        "print(sorted(heavy), dict(xla_bridge._backends))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] {}"


def test_public_names_exist_and_are_documented():
    import jaxmarket  # noqa: PLC0415

    assert sorted(jaxmarket.__all__, key=str.lower) == sorted(set(jaxmarket.__all__), key=str.lower)
    for name in jaxmarket.__all__:
        assert getattr(jaxmarket, name).__doc__


# --- whatever the terminal is, and whatever names are


def ascii_output(monkeypatch):
    """Standard output of a container, a scheduler, an old terminal; pytest replaces a fixture's."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    return out


def written(out):
    out.flush()
    return out.buffer.getvalue().decode("ascii")


def test_results_are_shown_in_any_encoding(monkeypatch, bandit_run, tmp_path):
    out = ascii_output(monkeypatch)
    hostile = tmp_path / "x [/y]\x1b[2J"
    hostile.mkdir(parents=True)
    monkeypatch.setattr(cli, "fit", lambda *_, **__: bandit_run[0])
    main(["train", "Bandit-v0", "--out", str(hostile), "--json"])
    *screen, line = written(out).splitlines()
    assert json.loads(line)["env"] == "Bandit-v0"
    assert any("written to" in row and r"x [/y]\x1b[2J: " in row for row in screen)
    assert any("Bandit-v0 . ccv auction" in row for row in screen)


def test_an_interrupted_run_in_a_folder_with_brackets(capsys, monkeypatch, bandit_run, tmp_path):
    (tmp_path / "[/yellow]").mkdir(parents=True)
    summary = bandit_run[0].summary | {"interrupted": True}
    monkeypatch.setattr(cli, "fit", lambda *_, **__: dataclasses.replace(bandit_run[0], summary=summary))
    with pytest.raises(SystemExit) as stopped:
        main(["train", "Bandit-v0", "--out", str(tmp_path / "[/yellow]")])
    assert stopped.value.code == 130
    assert f"--resume '{tmp_path}/[/yellow]'\n" in capsys.readouterr().out


def test_an_interrupted_reproduction_says_what_it_keeps(capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxmarket.experiments.reproduce", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "chain"])
    assert stopped.value.code == 130
    assert "finished parts are kept" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train", "--help"], ["--help"], ["reproduce", "--list"]])
def test_help_is_shown_in_any_encoding(arguments, monkeypatch):
    out = ascii_output(monkeypatch)
    main(arguments)
    assert written(out)


def test_an_episode_is_shown_in_any_encoding(monkeypatch, bandit_run):
    out = ascii_output(monkeypatch)
    main(["watch", str(bandit_run[1])])
    assert "->" in written(out)


def test_an_error_does_nothing_to_a_terminal(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "no\x1b[31mwhere\u202e"])
    error = capsys.readouterr().err
    assert r"no\x1b[31mwhere\u202e" in error
    assert "\x1b" not in error


@pytest.mark.slow
def test_closed_output_pipe_does_not_end_the_command():
    command = f"{sys.executable} -m jaxmarket --help | true; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
@pytest.mark.parametrize(
    ("program", "terminal", "level"),
    [("/usr/bin/jaxmarket", True, "3"), ("/usr/bin/jaxmarket", False, "None"), ("train.py", True, "None")],
)
def test_xla_s_log_stays_out_of_the_command_line_s_bar(program, terminal, level):
    code = (
        f"import os, sys; sys.argv[0] = {program!r}; sys.modules['jax'] = None\n"  # it must be said before that
        "try: import jaxmarket\n"
        "except ImportError: print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'))"
    )
    ours, theirs = os.openpty()
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    error = theirs if terminal else subprocess.DEVNULL
    run = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=error, text=True, check=True, env=env
    )
    os.close(ours)
    os.close(theirs)
    assert run.stdout.strip() == level

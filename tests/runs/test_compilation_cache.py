"""The compilation cache: what switches it on, where it is, its size, and that results stay the same."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest

from jaxmarket.runs import compilation_cache as cache

VARIABLES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
    cache.SETTING,
)
SETTINGS = {
    "jax_compilation_cache_dir": None,
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}


@pytest.fixture
def root(monkeypatch, tmp_path):
    """An empty cache folder of the user, and JAX's settings as they are without any variable; restored afterwards."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache.atexit, "register", lambda *_: None)
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name, value in SETTINGS.items():
        jax.config.update(name, value)
    yield tmp_path / "jaxmarket" / "programs"
    for name, value in before.items():
        jax.config.update(name, value)


def settings():
    return {name: getattr(jax.config, name) for name in SETTINGS}


def test_programs_are_kept_in_the_users_cache_folder(root):
    folder = cache.switch_on()
    assert folder is not None and folder.parent == root
    assert jax.__version__ in folder.name
    assert root.stat().st_mode & 0o777 == 0o700
    assert settings() == {
        "jax_compilation_cache_dir": str(folder),
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }


def test_the_folder_depends_on_the_number_of_cores(root, monkeypatch):
    names = set()
    for cores in ("1", "2"):
        monkeypatch.setenv("NPROC", cores)
        cache._versions.cache_clear()
        names.add(cache._versions())
    cache._versions.cache_clear()
    assert len(names) == 2


@pytest.mark.parametrize(
    ("platform", "variable", "below"),
    [
        ("linux", "XDG_CACHE_HOME", "jaxmarket/programs"),
        ("linux", "HOME", ".cache/jaxmarket/programs"),
        ("darwin", "HOME", "Library/Caches/jaxmarket/programs"),
        ("win32", "LOCALAPPDATA", "jaxmarket/programs"),
    ],
)
def test_the_folder_follows_the_platform(platform, variable, below, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert cache.user_folder() == tmp_path / below


@pytest.mark.parametrize("decision", ["off", "folder", "disabled"])
def test_what_the_user_decided_comes_first(decision, root, monkeypatch, tmp_path):
    if decision == "off":
        monkeypatch.setenv(cache.SETTING, "off")
    elif decision == "folder":
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    else:
        jax.config.update("jax_enable_compilation_cache", False)
    before = settings()
    assert cache.switch_on() is None
    assert settings() == before
    assert not root.exists()


def test_thresholds_that_the_user_chose_are_kept(root, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    assert cache.switch_on() is not None
    assert settings()["jax_persistent_cache_min_compile_time_secs"] == 1
    assert settings()["jax_persistent_cache_min_entry_size_bytes"] == -1


def test_another_value_of_the_setting_is_an_error(root, monkeypatch):
    monkeypatch.setenv(cache.SETTING, "perhaps")
    with pytest.raises(ValueError, match=f"{cache.SETTING}: .*perhaps.*on, off"):
        cache.switch_on()


@pytest.mark.parametrize("session", ["script", "script that imported IPython", "notebook", "setting"])
def test_fit_switches_it_on_in_sessions_only(session, root, monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    if session == "setting":
        monkeypatch.setenv(cache.SETTING, "on")
    elif session != "script":
        shell = object() if session == "notebook" else None
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    cache.in_session()
    assert (settings()["jax_compilation_cache_dir"] is not None) == (session in ("notebook", "setting"))


@pytest.mark.parametrize("fault", ["a file", "others may write", "full", "no home"])
def test_a_folder_that_cannot_serve_is_not_used(fault, root, monkeypatch):
    if fault == "a file":
        root.parent.write_text("")
    elif fault == "others may write":
        root.mkdir(parents=True)
        root.chmod(0o777)
    elif fault == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    else:
        monkeypatch.setattr(cache, "user_folder", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    before = settings()
    assert cache.switch_on() is None
    assert settings() == before


def test_the_least_recently_used_programs_are_deleted(tmp_path):
    paths = [tmp_path / ("old", "new")[i % 2] / f"{i}-cache" for i in range(6)]
    for i, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + i, 1000))  # used in this order
    os.utime(paths[0], (2000, 1000))
    cache.trim(tmp_path, 350)
    assert [i for i, path in enumerate(paths) if path.exists()] == [0, 4, 5]
    cache.trim(tmp_path, 350)
    assert sum(path.exists() for path in paths) == 3
    cache.trim(tmp_path / "absent", 0)


def test_it_is_trimmed_when_a_process_starts(root, monkeypatch):
    old = root / "other" / "program-cache"
    old.parent.mkdir(parents=True, mode=0o700)
    root.chmod(0o700)
    old.write_bytes(bytes(100))
    monkeypatch.setattr(cache, "LIMIT", 99)
    assert cache.switch_on() is not None
    assert not old.exists()


@pytest.mark.slow
def test_importing_switches_nothing_on(tmp_path):
    code = (
        "import jax, jaxmarket, jaxmarket.cli, jaxmarket.runs.compilation_cache; "
        "print(jax.config.jax_compilation_cache_dir)"
    )
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "None"


def start(*words, home):
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env |= {"XDG_CACHE_HOME": str(home), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", "jaxmarket", "train", "Bandit-v0", "--steps", "2048", "--json", *words]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ended(process):
    """The digest of the parameters, and what is on standard error besides the progress bar."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    lines = [line for line in err.splitlines() if line.strip() and "steps/s" not in line]
    return json.loads(out.splitlines()[-1])["params_sha256"], lines


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME")
def test_runs_end_with_the_same_bits_whatever_the_cache_holds(tmp_path):
    """Without it; two processes at once that fill it; one that reads it; with damaged entries; without a folder."""
    home = tmp_path / "home"
    home.mkdir()
    expected, lines = ended(start("--no-compilation-cache", home=home))
    assert not lines and not list(home.iterdir())
    both = [start(home=home) for _ in range(2)]
    assert [ended(process)[0] for process in both] == [expected] * 2
    entries = {path: path.stat().st_mtime_ns for path in home.rglob("*-cache")}
    assert entries
    assert ended(start(home=home)) == (expected, [])
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*-cache")} == entries  # nothing was compiled
    for path in entries:
        path.write_bytes(path.read_bytes()[:100])
    digest, lines = ended(start(home=home))
    assert digest == expected
    assert any("Error reading persistent compilation cache entry" in line for line in lines)
    assert ended(start(home="/dev/null")) == (expected, [])

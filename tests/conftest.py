"""What tests of commands have in common."""

import functools
import gc
import importlib
import inspect
import os
import pickle
import signal
import subprocess
import sys
import traceback
from multiprocessing import context
from pathlib import Path

# Before torch is loaded: threads of OpenMP do not survive a fork, and one thread gives the same bits everywhere.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hydra._internal import config_loader_impl as hydra_loader
from hydra.core.config_store import ConfigStore
from hypothesis import settings

# Most of what tests make is short-lived: looking for cycles in all of torch at each turn takes a tenth of their time.
gc.set_threshold(200_000, 50, 100)

# No test asserts on time: an example that takes long on a busy machine is no failure.
settings.register_profile("tfx", deadline=None)
settings.load_profile("tfx")

_Process = subprocess.Popen
# How many forks stand above this process.
_DEPTH = "TFX_TEST_FORKS"
_PARAMETERS = inspect.signature(_Process._execute_child)


class _Forked(_Process):
    """`subprocess.Popen`, but ``python -m tfx …`` is a fork of the tests' process.

    What it would load, which takes several times as long as most commands here, is loaded already. All else is as in
    a process of its own: pipes, environment, folder, signals, session and exit status.
    """

    def _execute_child(self, args, *others):
        if isinstance(args, (str, bytes)) or list(args[:3]) != [sys.executable, "-m", "tfx"]:
            super()._execute_child(args, *others)
            return
        given = _PARAMETERS.bind(self, args, *others).arguments
        _load()
        depth = int(os.environ.get(_DEPTH, 0)) + 1
        assert depth < 5, "commands start commands without end"
        pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        self.pid = os.fork()
        if self.pid == 0:
            _become(given, [str(word) for word in args[3:]], depth)
        self._child_created = True
        self._close_pipe_fds(*pipes)


@functools.cache
def _load():
    """Loads what a training loads on its way."""
    for name in ("torch._dynamo", "tfx.run.life", "tfx.experiments.hydra_launcher", "tfx.report.page"):
        importlib.import_module(name)
    from tfx.config.schema import DatasetConfig
    from tfx.data.corpus import load_corpus

    for name in ("normalize", "kinds"):
        load_corpus(DatasetConfig(name=name, format=name, task="classification" if name == "kinds" else "seq2seq"))


def _become(given, words, depth):
    """Runs the command in the forked process, and ends it."""
    status = 1
    try:
        gc.disable()  # what the tests left is not for this process to finalize
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for target, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
            if given[name] != -1:
                os.dup2(given[name], target)
        os.closerange(3, min(os.sysconf("SC_OPEN_MAX"), 1 << 16))
        if given["start_new_session"]:
            os.setsid()
        if given["preexec_fn"] is not None:
            given["preexec_fn"]()
        if given["cwd"] is not None:
            os.chdir(given["cwd"])
        if given["env"] is not None:
            os.environ.clear()
            os.environ.update(given["env"])
        os.environ[_DEPTH] = str(depth)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads did not survive the fork
        _open_streams()
        sys.argv = ["tfx", *words]
        from hydra.core.global_hydra import GlobalHydra

        from tfx.cli import main

        GlobalHydra.instance().clear()
        status = main(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                status = 120
        os._exit(status)


def _open_streams():
    """Opens the standard streams as a new process would."""
    encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0] or "utf-8"
    sys.stdin = sys.__stdin__ = open(0, encoding=encoding, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding, closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding=encoding, errors="backslashreplace", buffering=1, closefd=False)


def _remember_composed():
    """Lets Hydra read and merge the same files once, which saves a tenth of the tests' time.

    What the choice of groups gives is remembered. Values of single settings Hydra puts on top, as ever. That nothing
    else changes is tested (`config/test_compose.py`).
    """
    find, merge = hydra_loader.create_defaults_list, hydra_loader.ConfigLoaderImpl._compose_config_from_defaults_list
    known = {}

    def remembered(key, repo, work):
        sources = [(source.scheme(), source.provider, source.path) for source in repo.get_sources()]
        # A test's own folder of configs changes, and so do the techniques that it installs.
        installed = [name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get("technique", {})]
        if any(scheme == "file" for scheme, *_ in sources) or any(name in key for name in installed):
            return work()
        key = key, repr(sources)
        if key not in known:
            known[key] = pickle.dumps(work(), pickle.HIGHEST_PROTOCOL)
        return pickle.loads(known[key])

    def create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing):
        chosen = [word for word in overrides_list if not word.is_sweep_override()]
        single = [word for word in chosen if isinstance(word.value(), dict) or not repo.group_exists(word.key_or_group)]
        groups = [word for word in chosen if not any(word is other for other in single)]
        key = repr((config_name, [word.input_line for word in groups], prepend_hydra, skip_missing))
        found = remembered(key, repo, lambda: find(repo, config_name, groups, prepend_hydra, skip_missing))
        found.config_overrides = single
        return found

    def compose(self, defaults, repo):
        return remembered(repr(defaults), repo, lambda: merge(self, defaults, repo))

    ConfigStore.__deepcopy__ = lambda self, memo: self  # it is the only one, and what is loaded from it is a copy
    hydra_loader.create_defaults_list = create_defaults_list
    hydra_loader.ConfigLoaderImpl._compose_config_from_defaults_list = compose


_remember_composed()


@pytest.fixture(autouse=True)
def _forked(monkeypatch, request):
    """Commands of tfx that a test starts are forks; a test marked ``whole_process`` starts them as a user does."""
    if request.node.get_closest_marker("whole_process") is None:
        monkeypatch.setattr(subprocess, "Popen", _Forked)
        monkeypatch.setitem(context._concrete_contexts, "spawn", context._concrete_contexts["fork"])


@pytest.fixture
def real_data():
    """Gives the path of a folder of real data; the test is skipped where there is none."""

    def path(folder):
        found = Path(os.environ.get("TFX_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")) / folder
        if not found.is_dir():
            pytest.skip(f"{found} does not exist (TFX_TEST_DATA names another folder)")
        return found

    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, with a cache of its own beside it."""
    monkeypatch.setenv("TFX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with a cache of its own, and `text.txt` to model."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFX_CACHE", str(path / "cache"))
        patch.chdir(path)
        (path / "text.txt").write_text("".join(f"line {i} of a little text\n" for i in range(300)))
        yield path

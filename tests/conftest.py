"""What all tests share."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from .browser import browser  # noqa: F401 - a fixture of all

# Two workers share the processors: each test, and each process it starts, takes one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
if hasattr(_libc, "mallopt"):
    # What a test has freed goes back to the system: glibc would keep the largest tensors of every
    # thread, and a worker that has done a thousand tests would hold twice what it needs.
    _libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: larger blocks are mapped, each by itself
    _libc.mallopt(-8, 2)  # M_ARENA_MAX

CACHED = type(functools.cache(len))
SHARED = Path(__file__).resolve().parents[2] / "shared"

# The same examples on every machine, so that a change and nothing else turns a test red; `.ci/run`
# looks for new ones with the other profile.
settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("fuzz", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("repeat")


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort of eight simulated fields (900 px, 0.25 µm/px) of four patients.

    `slides/*.jpg`, `labels.csv` (slide_id,label,group), `points.csv` (slide_id,x,y,label: cells
    by Bethesda class) and the truth as `cytofm simulate` writes it. For reading only.
    """
    from cytofm_cli.api.simulate import simulate_slides
    from cytofm_cli.simulate.nuclei import points_table, read_nuclei

    folder = tmp_path_factory.mktemp("simulated")
    simulate_slides(
        folder, patients=4, slides_per_patient=2, size_px=900, abnormal_share=0.4, format="jpeg"
    )
    (folder / "points.csv").write_text(points_table(read_nuclei(folder)))
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all-of-shared",
        action="store_true",
        help="fail where a test is skipped for want of a file of ../shared, though the folder is",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the whole suite between two processes, each file in one; a part of it runs in one."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    unsaid = getattr(config.option, "numprocesses", 0) is None  # 0 where there is no xdist
    if whole and unsaid and not hasattr(config, "workerinput"):
        config.option.numprocesses, config.option.dist = 2, "loadfile"


def pytest_collection_finish() -> None:
    """Leave modules and tests, which stay, out of later collections of garbage."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else Triton reports at exit that its functions leak


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what reads files that a clone does not have."""
    for marker in item.iter_markers("needs_shared"):
        if not (SHARED / marker.args[0]).exists():
            pytest.skip(f"../shared/{marker.args[0]} is not beside this checkout")


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forget the models of a file of tests, which hang in circles, and what its functions keep."""
    if nextitem is None or nextitem.path != item.path:
        for value in vars(getattr(item, "module", item)).values():
            if isinstance(value, CACHED) and not value.__module__.startswith("cytofm_"):
                value.cache_clear()
        gc.collect()
        if hasattr(_libc, "malloc_trim"):
            _libc.malloc_trim(0)  # also of the many small blocks that tests leave between others


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran, skipped = _of_shared(terminalreporter)
    if ran or skipped:
        line = f"{len(ran | skipped)} tests need ../shared, {len(skipped)} skipped"
        terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    strict = session.config.getoption("all_of_shared") and SHARED.is_dir()
    if strict and reporter and _of_shared(reporter)[1]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _of_shared(reporter: pytest.TerminalReporter) -> tuple[set[str], set[str]]:
    """Return the ids of the tests marked `needs_shared` that ran, and of those skipped."""
    reports = {
        kind: [r for r in reporter.stats.get(kind, []) if isinstance(r, pytest.TestReport)]
        for kind in ("passed", "failed", "error", "skipped")  # of modules too, hence the class
    }
    marked = {
        kind: {r.nodeid for r in some if "needs_shared" in r.keywords}
        for kind, some in reports.items()
    }
    skipped = marked.pop("skipped")
    return set().union(*marked.values()), skipped

"""What a user installs is what was tested."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cytofm_cli

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cytofm_cli", "kernels/cytofm_kernels")
# Where a distribution and what is imported of it are called differently.
MODULES = {
    "dask-jobqueue": "dask_jobqueue",
    "opencv-python-headless": "cv2",
    "google-crc32c": "google_crc32c",
    "openslide-python": "openslide",
    "pillow": "PIL",
    "pyisyntax": "isyntax",
}
# Declared, and used without an import statement.
UNSEEN = {
    "torchvision": "timm calls its operators; it must be of torch's build",
    "openslide-bin": "the library that openslide-python loads",
    "pyvips-binary": "the library that pyvips loads",
    "cryptography": "distributed makes its keys with it",
    "xstatic-leaflet": "the page loads its files",
    **dict.fromkeys(
        ("kfbslide", "tmapslide", "isyntax", "pylibczirw", "fastslide", "wsidicom"),
        "readers of slides import it by name, to say what it lacks (slides/packages.py)",
    ),
}
# Imported, and not declared: it comes with torch where torch has GPU kernels, and its absence is
# a case that `cytofm_kernels.explain` names.
WITH_TORCH = {"triton"}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement: str) -> str:
    return re.split(r"[<>=~!\[ ]", requirement)[0]


def extras() -> list[str]:
    groups = project()["project"]["optional-dependencies"].values()
    return [requirement for group in groups for requirement in group]


def modules_of(requirements: list[str]) -> set[str]:
    names = {name_of(requirement) for requirement in requirements}
    return {MODULES.get(name, name) for name in names}


def imports_of(package: str) -> Iterator[tuple[str, str, bool]]:
    """Yield what is imported from elsewhere: (module, place, whether at the file's top level)."""
    own = {Path(each).name for each in PACKAGES} | set(sys.stdlib_module_names)
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(), str(path))
        for node in ast.walk(tree):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.partition(".")[0]
                if top not in own:
                    place = f"{path.relative_to(ROOT)}:{node.lineno}"
                    yield top, place, node in tree.body


def test_imports__are_declared() -> None:
    declared = modules_of(project()["project"]["dependencies"])
    extra = modules_of(extras())
    for package in PACKAGES:
        for module, place, at_top in imports_of(package):
            allowed = declared | WITH_TORCH if at_top else declared | WITH_TORCH | extra
            assert module in allowed, f"{place} imports {module}"


def test_dependencies__are_imported() -> None:
    used = {module for package in PACKAGES for module, _, _ in imports_of(package)}
    declared = project()["project"]["dependencies"]
    assert modules_of([*declared, *extras()]) - used == set(UNSEEN)


def test_kernels__need_torch_only() -> None:
    assert {module for module, _, _ in imports_of("kernels/cytofm_kernels")} == {
        "torch",
        "triton",
        "numpy",  # quicker sorts where it is; a try
    }


def test_kernels__a_folder_on_the_path_does_not_hide_the_package_of_that_name(tmp_path) -> None:
    # An editable install puts the checkout on the path, and with it the folder kernels/.
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("OTHERS = True\n")
    code = "import kernels; print(kernels.OTHERS)"
    path = f"{ROOT}:{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd=tmp_path.parent, env={"PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout.strip() == "True"


def test_version__is_the_same_everywhere() -> None:
    version = project()["project"]["version"]
    assert cytofm_cli.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_wheel__has_no_package_beside_the_two() -> None:
    wheel = project()["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == list(PACKAGES)
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_sdist__holds_what_is_tracked_but_the_settings_of_tools() -> None:
    included = set(project()["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert all((ROOT / name).exists() for name in included)
    assert included >= {"tests", "docs", "examples", "constraints.txt", "LICENSE"}


def test_constraints__the_file_for_pip_and_the_list_for_uv_are_equal() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for_pip = [line for line in lines if line and not line.startswith("#")]
    assert for_pip == project()["tool"]["uv"]["constraint-dependencies"]
    assert all(re.fullmatch(r"[a-z0-9.\-_]+==[0-9a-z.]+", line) for line in for_pip)


def test_constraints__every_direct_dependency_is_pinned() -> None:
    pinned = {line.split("==")[0] for line in project()["tool"]["uv"]["constraint-dependencies"]}
    groups = project()["project"]["dependencies"] + project()["dependency-groups"]["dev"]
    optional = project()["project"]["optional-dependencies"]
    groups += [name for extra in ("frames", "tensorboard") for name in optional[extra]]
    direct = {name_of(requirement) for requirement in groups}
    assert direct - pinned == set()


def test_no_lock_file_and_no_package_host_is_tracked() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert "uv.lock" not in listed


def test_help__is_quick_because_it_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from cytofm_cli.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'zarr', 'pandas', 'scipy', 'pyvips'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "quickstart" in done.stdout
    assert "heavy: []" in done.stderr


@pytest.mark.parametrize(("stated", "threads"), [(None, 1), ("2", 2)])
def test_matrix_products_of_a_command__have_one_thread_unless_stated(
    stated: str | None, threads: int
) -> None:
    code = (
        "import cytofm_cli.__main__, numpy, threadpoolctl\n"
        "pools = threadpoolctl.threadpool_info()\n"
        "print({p['num_threads'] for p in pools if p['internal_api'] == 'openblas'})\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    if stated is not None:
        environment["OPENBLAS_NUM_THREADS"] = stated
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() in (f"{{{threads}}}", "set()")  # another BLAS


def test_tile__imports_neither_torch_nor_zarr() -> None:
    code = (
        "import sys\n"
        "import cytofm_cli.cli.tile, cytofm_cli.tiles.run\n"
        "heavy = {'torch', 'torchvision', 'timm', 'zarr', 'pandas', 'scipy', 'h5py', 'tifffile'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_packages_of_scanners__are_all_there_when_the_tests_run_in_ci() -> None:
    """Else the conformance of their readers would be skipped."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras, dev = project["project"]["optional-dependencies"], project["dependency-groups"]["dev"]
    for extra in ("kfb", "tmap", "isyntax", "czi", "vsi", "dicom"):
        assert extras[extra] and set(extras[extra]) <= set(dev), extra

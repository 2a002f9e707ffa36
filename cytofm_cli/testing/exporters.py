"""What every exporter must do. A case asks for products of a small store."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytofm_cli.config import resolve
from cytofm_cli.errors import ConfigMismatchError, StoreError
from cytofm_cli.exporters.base import ExportRequest
from cytofm_cli.exporters.config import ExportConfig
from cytofm_cli.exporters.product import RECORDS, Product, make, size_of, status_of
from cytofm_cli.registry import ExporterPlugin, Sample, exporters
from cytofm_cli.store.io import Store
from cytofm_cli.testing.samples.stores import make_store
from cytofm_cli.testing.suite import Case, Suite, refuses


@dataclass(frozen=True)
class Exports:
    """Asks an exporter for its products, under the settings of a sample."""

    name: str
    plugin: ExporterPlugin
    sample: Sample
    store: Store

    def products(self, folder: Path, store: Store | None = None, **more: Any) -> list[Product]:
        """Return the products of the store in a folder."""
        own = self.sample.settings.get("own", {})
        settings = {key: value for key, value in self.sample.settings.items() if key != "own"}
        request = ExportRequest(
            store=store or self.store,
            folder=folder,
            config=ExportConfig(to=(self.name,), **settings | more),
            own=resolve(self.plugin.config, self.name, own) if self.plugin.config else None,
        )
        products: list[Product] = self.plugin.make(request)
        return products


def _exports(name: str, plugin: ExporterPlugin, sample: Sample, folder: Path) -> Exports:
    return Exports(name, plugin, sample, make_store(folder))


SUITE = Suite(exporters, _exports)


def _files(folder: Path) -> dict[str, bytes]:
    """Return what lies in a folder; of an archive, what is in it: its names hold the process."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _content(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(member) for member in archive.namelist())


@SUITE.check
def it_says_what_it_writes_and_which_settings_it_takes(case: Case) -> None:
    """Both are of known words."""
    known = {field.name for field in dataclasses.fields(ExportConfig)}
    assert case.plugin.what
    assert set(case.plugin.what) <= {"bags", "nuclei"}
    assert set(case.plugin.options) <= known
    assert set(case.sample.settings) <= {*case.plugin.options, "own"}


@SUITE.check
def asking_writes_nothing(case: Case) -> None:
    """A rehearsal asks only."""
    folder = case.folder / "asked"
    products = case.thing.products(folder)
    assert products
    assert all(product.files for product in products)
    assert {status_of(product, folder) for product in products} == {"written"}
    assert not folder.exists()


@SUITE.check
def files_are_those_that_were_announced(case: Case) -> None:
    """All below the folder of the export, and none besides but the records."""
    folder = case.folder / "announced"
    products = case.thing.products(folder)
    assert {make(product, folder) for product in products} == {"written"}
    announced = {str(file.relative_to(folder)) for product in products for file in product.files}
    within = {  # a folder that was announced stands for the files in it
        str(inner.relative_to(folder)): name
        for name in announced
        for inner in [folder / name, *(folder / name).rglob("*")]
    }
    written = {within.get(name) for name in _files(folder) if not name.startswith(RECORDS)}
    assert written == announced
    assert all(size_of(folder / name) for name in announced)


@SUITE.check
def what_is_up_to_date_is_skipped_and_a_rerun_gives_the_same(case: Case) -> None:
    """Whole and after a file is gone."""
    folder = case.folder / "rerun"
    for product in case.thing.products(folder):
        make(product, folder)
    first = _files(folder)
    again = case.thing.products(folder)
    assert {make(product, folder) for product in again} == {"skipped"}
    gone = again[0].files[0]
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert make(case.thing.products(folder)[0], folder) == "written"
    for product in case.thing.products(folder):
        assert make(product, folder, overwrite=True) == "written"
    assert _files(folder) == first


@SUITE.check
def the_store_is_left_as_it_is(case: Case) -> None:
    """An export reads only."""
    before = _files(case.thing.store.path)
    for product in case.thing.products(case.folder / "store"):
        make(product, case.folder / "store")
    assert _files(case.thing.store.path) == before


@SUITE.check
def what_the_store_does_not_hold_is_refused(case: Case) -> None:
    """Such an encoder, such a detector."""
    for option in {"encoder", "detector"} & set(case.plugin.options):
        refuses(
            StoreError, "nobody", lambda name: case.thing.products(case.folder, **{name: "nobody"}),
            option,
        )  # fmt: skip


@SUITE.check
def files_of_other_settings_are_refused(case: Case) -> None:
    """Settings that would have made other files stand in `Product.settings`."""
    folder = case.folder / "settings"
    for product in case.thing.products(folder):
        make(product, folder)
        if product.settings:
            name = sorted(product.settings)[0]
            other = dataclasses.replace(product, settings={**product.settings, name: "other"})
            refuses(ConfigMismatchError, name, make, other, folder)

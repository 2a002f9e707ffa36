"""Plug-ins: one file is one plug-in, and no list has to be edited.

Where a plug-in of a kind may lie:

1. a module of cytofm's own folder of that kind (`cytofm_cli/mil/methods/abmil.py`);
2. an entry point of an installed distribution, in the group of that kind (`cytofm.mil_methods`);
3. a file `cytofm_plugins/<folder>/NAME.py` below a folder on the path, e.g. with PYTHONPATH:
   `cytofm_plugins/mil_methods/toy.py`. The folder is called as the group, without `cytofm.`

Each exports `PLUGIN`. `names` lists them without importing one; `load` imports one and turns a
missing optional package into the command that installs it. Of one name there is one plug-in:
cytofm's own goes before a distribution's, which goes before a file; the others are left out, and
`shadowed` says so. The working directory is only searched where the user put it on the path:
Python itself puts it first with `python -m`, and that entry does not count.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.machinery
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from cytofm_cli.errors import CytofmError, MissingPackageError, UsageError
from cytofm_cli.places import Place, find_places, modules_in

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One way in which the conformance suite of its kind runs a plug-in.

    Attributes:
        settings: of the plug-in. What they are differs by kind: see `cytofm_cli.testing`.
        traits: what the suite has to know of the plug-in under these settings; likewise.
        made: the thing itself, where settings alone do not make it.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    traits: Mapping[str, Any] = field(default_factory=dict)
    made: Any = None


# Called with an empty folder, where it may leave files (weights, slides).
Samples = Callable[[Path], Sequence[Sample]]


def samples(*settings: Mapping[str, Any], **traits: Any) -> Samples:
    """Return the samples of a plug-in that needs no files: one for each of these settings."""
    return lambda _folder: [Sample(settings=each, traits=traits) for each in settings or ({},)]


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What a plug-in module exports under the name `PLUGIN`; for a MIL head, this very class.

    The other kinds have more to say, each in a class of its own below.

    Attributes:
        make: the class or function that makes the thing.
        summary: one line for `cytofm doctor` and help.
        config: the plug-in's frozen configuration dataclass, if it has one.
        needs: importable package names that must be there.
        extra: the extra of cytofm that installs `needs`.
        version: goes up when equal settings give other results.
        typed: what users type, where the name of the module is no good word or one of Python's.
        sample: how the conformance suite runs it: a function, or "module:function" where its
            file should not import what only tests need.
    """

    make: Any
    summary: str
    config: type | None = None
    needs: tuple[str, ...] = ()
    extra: str | None = None
    version: int = 1
    typed: str | None = None
    sample: Samples | str | None = None


@dataclass(frozen=True, kw_only=True)
class ReaderPlugin(Plugin):
    """A reader of slides; `make()` gives what `slides.base.ReaderOpener` describes.

    Attributes:
        suffixes: of its files, lower case, with the dot: folders are searched for them, and
            they are no part of a slide's name.
        turn: when it is asked whether it wants a file: lower ones first, equal ones by name.
        only: it is asked about files of its suffixes alone.
    """

    suffixes: tuple[str, ...] = ()
    turn: int = 50
    only: bool = False


@dataclass(frozen=True, kw_only=True)
class DetectorPlugin(Plugin):
    """A detector of nuclei; `make(config)` gives a `nuclei.base.NucleusDetector`.

    Attributes:
        from_files: it gives a `nuclei.base.NucleusSource`, which reads the file of each slide
            (`--nuclei`, the setting `nuclei` of its `config`) and looks at no pixels.
        weights: the weight file that it needs (the setting `weights` of its `config`), in words;
            "": none.
    """

    from_files: bool = False
    weights: str = ""


@dataclass(frozen=True, kw_only=True)
class EncoderPlugin(Plugin):
    """An encoder; `make(request)` gives an `encoders.base.Encoder`.

    Attributes:
        entries: the `encoders.entries.Entry` of each encoder that it brings by name; none: the
            plug-in's own name is the only one, with `needs_weights` and `expects`.
        needs_weights: whether the user must pass a weight file, a download or random weights.
        expects: fields of `EncoderSpec` that are known before it is loaded: `dim`, `input_px`,
            `mpp`, `licence`, and `cell_um`, the crop around a nucleus that it prefers.
        models: what stands behind its name, e.g. "<name>" in `timm/<name>`; "": nothing does.
        require: refuses a name behind the slash that there is not, before anything is loaded.
        trunk: gives the network that `cytofm pretrain` trains, an `encoders.base.Blueprint` for
            an `encoders.base.TrunkRequest`; None: it cannot be pretrained.
    """

    entries: tuple[Any, ...] = ()
    needs_weights: bool = True
    expects: Mapping[str, Any] = field(default_factory=dict)
    models: str = ""
    require: Callable[[str], None] | None = None
    trunk: Callable[[Any], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class PretrainPlugin(Plugin):
    """A self-supervised method; `make(backbones, config, length)` gives a `pretrain.base.Method`.

    Attributes:
        views: settings of [views] that it has where the user names none: `recipe`, `n_local`,
            `global_scale`, ...
    """

    views: Mapping[str, Any] = field(default_factory=lambda: {"recipe": "dino"})


@dataclass(frozen=True, kw_only=True)
class ExporterPlugin(Plugin):
    """An exporter; `make(request)` gives `exporters.product.Product`s.

    Attributes:
        what: what its files hold: "bags", "nuclei", or both.
        options: the settings of [export] that it looks at; others are refused with it.
    """

    what: tuple[str, ...] = ("bags",)
    options: tuple[str, ...] = ()


P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True, kw_only=True)
class Available:
    """A plug-in as listings show it.

    Attributes:
        name: how it is called.
        summary: one line; "" if it cannot even be imported.
        missing: what it needs and how to install that; "" if nothing.
        broken: why it cannot be imported; "" if it can.
    """

    name: str
    summary: str
    missing: str = ""
    broken: str = ""


@dataclass(frozen=True)
class Registry(Generic[P]):
    """The plug-ins of one kind.

    Args:
        kind: what a plug-in is called in messages, e.g. "detector".
        package: dotted name of the package whose modules are cytofm's own plug-ins.
        group: entry-point group for plug-ins of other distributions.
        plugin: the class of what they export.
    """

    kind: str
    package: str
    group: str
    plugin: type[P]
    _added: dict[str, P] = field(default_factory=dict, init=False, compare=False)

    def add(self, name: str, plugin: P) -> None:
        """Make a plug-in known in this process, e.g. one that is defined in a notebook.

        It takes the place of one that was added under the same name; processes that are started
        later do not know it.

        Raises:
            UsageError: a plug-in of this name is installed.
        """
        key = name.replace("-", "_")
        if key in self._places():
            raise UsageError(
                f"a {self.kind} called {name!r} is there already.", hint="choose another name"
            )
        self._added[key] = plugin

    def names(self) -> list[str]:
        """Return the names of all plug-ins, sorted, without importing them."""
        return sorted({*self._places(), *self._added})

    def words(self) -> list[str]:
        """Return the names of all plug-ins as users type them, sorted."""
        typed = self._typed()
        return sorted(typed.get(name, name) for name in self.names())

    def own(self) -> list[str]:
        """Return the names of cytofm's own plug-ins, sorted."""
        spec = importlib.util.find_spec(self.package)
        folders = (spec.submodule_search_locations if spec else None) or ()
        return sorted(modules_in(folders))

    def load(self, name: str) -> P:
        """Import and return one plug-in.

        Raises:
            UsageError: no plug-in has this name, or it cannot be imported.
            MissingPackageError: a package that it needs is not installed.
        """
        plugin = self.find(name)
        self._refuse_missing(name, plugin)
        return plugin

    def key(self, name: str) -> str:
        """Return the name of the plug-in for what a user typed."""
        return self._key(name, self._places())

    def _key(self, name: str, places: Mapping[str, Place]) -> str:
        name = name.replace("-", "_")
        if name in places or name in self._added:
            return name
        return {word: key for key, word in self._typed().items()}.get(name, name)

    def find(self, name: str) -> P:
        """Import and return one plug-in, also if the packages that it needs are not installed.

        Raises:
            UsageError: no plug-in has this name, or it cannot be imported.
        """
        if (added := self._added.get(name.replace("-", "_"))) is not None:
            return added
        candidates = self._candidates()
        places = {known: each[0] for known, each in candidates.items()}
        name = self._key(name, places)
        if name not in places:
            words = self.words()
            close = difflib.get_close_matches(name, words, n=1)
            known = f"did you mean {close[0]}?" if close else f"known: {', '.join(words)}"
            raise UsageError(f"no {self.kind} is called {name!r}.", hint=known)
        place = places[name]
        for text in self._left_out(name, candidates[name]):
            _warn(text)
        try:
            plugin = place.plugin()
        except CytofmError:
            raise
        except Exception as error:  # a plug-in of another package may do anything when imported
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UsageError(
                f"{self.kind} {name!r} cannot be imported ({said}).",
                hint=f"mend or remove {place.where}",
            ) from error
        if not isinstance(plugin, self.plugin):
            raise UsageError(
                f"{self.kind} {name!r} exports no {self.plugin.__name__} as PLUGIN.",
                hint=f"mend or remove {place.where}",
            )
        return plugin

    def usable(self) -> dict[str, P]:
        """Import all plug-ins and return those that can be, by name."""
        plugins = {}
        for name in self.names():
            try:
                plugins[name] = self.find(name)
            except CytofmError:
                continue  # `cytofm doctor` says why
        return plugins

    def available(self) -> list[Available]:
        """Describe every plug-in, also those that cannot be used here."""
        return [self._describe(name) for name in self.names()]

    def shadowed(self) -> list[str]:
        """Say which plug-ins are left out because one before them has their name."""
        return [
            text
            for name, candidates in sorted(self._candidates().items())
            for text in self._left_out(name, candidates)
        ]

    def _left_out(self, name: str, candidates: Sequence[Place]) -> list[str]:
        first, *others = candidates
        return [
            f"{self.kind} {name!r} of {place.where} is left out: that of {first.where} goes first"
            for place in others
        ]

    def _describe(self, name: str) -> Available:
        summary, typed = "", name
        try:
            plugin = self.find(name)
            summary, typed = plugin.summary, plugin.typed or name
            self._refuse_missing(name, plugin)
        except MissingPackageError as error:
            return Available(name=typed, summary=summary, missing=error.one_line())
        except CytofmError as error:
            return Available(name=typed, summary=summary, broken=error.one_line())
        return Available(name=typed, summary=summary)

    def _refuse_missing(self, name: str, plugin: Plugin) -> None:
        missing = [need for need in plugin.needs if importlib.util.find_spec(need) is None]
        if missing:
            extra = f"'cytofm[{plugin.extra}]'" if plugin.extra else " ".join(missing)
            raise MissingPackageError(
                f"{self.kind} {name!r} needs {', '.join(missing)}.", hint=f"pip install {extra}"
            )

    def _typed(self) -> dict[str, str]:
        return {name: plugin.typed for name, plugin in self.usable().items() if plugin.typed}

    def _places(self) -> dict[str, Place]:
        return {name: candidates[0] for name, candidates in self._candidates().items()}

    def _candidates(self) -> dict[str, list[Place]]:
        return find_places(self.package, self.own(), self.group)


@functools.cache  # once a process
def _warn(text: str) -> None:
    _log.warning(text)


readers = Registry("reader", "cytofm_cli.slides.readers", "cytofm.readers", ReaderPlugin)
detectors = Registry("detector", "cytofm_cli.nuclei.detectors", "cytofm.detectors", DetectorPlugin)
encoders = Registry("encoder", "cytofm_cli.encoders.models", "cytofm.encoders", EncoderPlugin)
mil_methods = Registry("MIL method", "cytofm_cli.mil.methods", "cytofm.mil_methods", Plugin)
pretrain_methods = Registry(
    "pretraining method", "cytofm_cli.pretrain.methods", "cytofm.pretrain_methods", PretrainPlugin
)
exporters = Registry("exporter", "cytofm_cli.exporters.formats", "cytofm.exporters", ExporterPlugin)
ALL: Final[tuple[Registry[Any], ...]] = (
    readers, detectors, encoders, pretrain_methods, mil_methods, exporters,
)  # fmt: skip

"""Which encoders are judged, named as on the command line, and what tells two apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cytofm_cli.encoders import catalogue
from cytofm_cli.encoders.base import Encoder
from cytofm_cli.encoders.load import load_encoder
from cytofm_cli.encoders.sidecar import sidecar
from cytofm_cli.encoders.weights import holds_updates, read_description
from cytofm_cli.errors import UsageError, WeightsError
from cytofm_cli.named_files import absent
from cytofm_cli.runs import provenance
from cytofm_cli.words import named


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One encoder to judge.

    Attributes:
        label: how it is called in the results; unique.
        word: name, or file that names its own architecture.
        name: of the encoder, as stores know it.
        weights: file of the weights, if they do not lie in `word`.
        random: take random weights.
        weights_sha256: digest of the file, None without.
        stated: what a file beside the weights says of them.
    """

    label: str
    word: str
    name: str
    weights: Path | None
    random: bool
    weights_sha256: str | None
    stated: dict[str, Any] = field(default_factory=dict)

    @property
    def has_weights(self) -> bool:
        """Whether it can be loaded (else only stored embeddings will do)."""
        return (
            self.random or self.weights_sha256 is not None or not catalogue.needs_weights(self.word)
        )

    def identity(self) -> dict[str, Any]:
        """Return what changes its vectors; a file counts by content, not by path."""
        said = {"name": self.name, "random": self.random, "weights_sha256": self.weights_sha256}
        return said | ({"stated": self.stated} if self.stated else {})

    def expects(self) -> dict[str, Any]:
        """Return the fields of `EncoderSpec` that are known without loading it."""
        return {**catalogue.resolve(self.word, weights=self.weights).expects, **self.stated}

    def require_weights(self) -> None:
        """Refuse an encoder that cannot be loaded.

        Raises:
            WeightsError: it needs weights.
        """
        if not self.has_weights:
            raise WeightsError(
                f"encoder {self.word!r} needs weights.",
                hint=f"--encoder {self.word}=FILE; --random-weights is a floor to compare with.",
            )

    def load(self, *, device: str, seed: int, pooling: str | None) -> Encoder:
        """Open the encoder.

        Raises:
            WeightsError: it needs weights, or they do not fit.
        """
        self.require_weights()
        return load_encoder(
            self.word,
            weights=self.weights,
            device=device,
            seed=seed,
            random_weights=self.random,
            pooling=pooling if catalogue.needs_weights(self.word) else None,  # type: ignore[arg-type]
        )


def choose(
    words: Sequence[str], *, weights: Path | None, random_weights: bool, seed: int
) -> list[Choice]:
    """Trace NAME, FILE and NAME=FILE to encoders.

    Args:
        words: as typed.
        weights: file for the one encoder that needs it and names none.
        random_weights: the encoders that need weights and name none take random ones.
        seed: of random weights.

    Raises:
        UsageError: no such encoder, one named twice, weights that could be of several, or random
            ones for none.
        WeightsError: a file is missing.
    """
    choices = [_trace(word) for word in words]
    bare = [i for i, choice in enumerate(choices) if not choice.has_weights]
    if weights is not None:
        if random_weights:
            raise UsageError(
                "weights from a file, or random ones: not both.",
                hint="--encoder NAME=FILE --encoder NAME --random-weights",
            )
        if len(bare) != 1:
            raise UsageError(
                f"--weights is for one encoder that needs weights; {len(bare)} are named.",
                hint="--encoder NAME=FILE for each",
            )
        choices[bare[0]] = _with_file(choices[bare[0]], weights)
    elif random_weights:
        if not bare:
            raise UsageError(
                f"--random-weights has nothing to draw: {named(words)} (weights are there, or none "
                "needed).",
                hint="name one that needs some, as sr-vit-nano; `cytofm encoders` lists them",
            )
        for i in bare:
            name = f"{choices[i].name}-random{seed}"
            choices[i] = replace(choices[i], name=name, label=name, random=True)
    return _tell_apart(choices)


def _trace(word: str) -> Choice:
    name, equals, file = word.partition("=")
    if equals and not Path(word).is_file():
        return _with_file(_trace(name), Path(file))
    if Path(word).is_file() and holds_updates(Path(word)):  # of weights that are named beside it
        name = read_description(Path(word)).name
        return Choice(
            label=name, word=word, name=name, weights=None, random=False, weights_sha256=None
        )
    resolved = catalogue.resolve(word)
    digest = None if resolved.weights is None else provenance.sha256_file(resolved.weights)
    return Choice(
        label=resolved.name,
        word=word,
        name=resolved.name,
        weights=None,
        random=False,
        weights_sha256=digest,
        stated={} if resolved.weights is None else sidecar(resolved.weights),
    )


def _with_file(choice: Choice, file: Path) -> Choice:
    if not catalogue.needs_weights(choice.word):
        raise UsageError(f"encoder {choice.word!r} takes no weights.")
    if choice.weights_sha256 is not None:
        raise UsageError(f"{choice.word} is a weight file, and {file} another one.")
    if not file.is_file():
        raise WeightsError(f"{file}: {absent(file, 'weight file')}.")
    updates = Path(choice.word)
    telling = updates if updates.is_file() and holds_updates(updates) else file
    digest = provenance.sha256_file(telling)
    return replace(choice, weights=file, weights_sha256=digest, stated=sidecar(file))


def _tell_apart(choices: list[Choice]) -> list[Choice]:
    counts = Counter(choice.label for choice in choices)
    named_apart = [
        replace(choice, label=f"{choice.label} {(choice.weights or Path(choice.word)).name}")
        if counts[choice.label] > 1 and choice.weights_sha256 is not None
        else choice
        for choice in choices
    ]
    again = Counter(choice.label for choice in named_apart)
    named_apart = [
        replace(choice, label=f"{choice.label} {(choice.weights_sha256 or '')[:8]}".strip())
        if again[choice.label] > 1
        else choice
        for choice in named_apart
    ]
    twice = [
        label
        for label, count in Counter(choice.label for choice in named_apart).items()
        if count > 1
    ]
    if twice:
        raise UsageError(f"encoder {twice[0]!r} is named twice.")
    return named_apart

"""Classes: which spellings are one, in which order they count, and which is the positive one."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from cytofm_cli.errors import LabelError
from cytofm_cli.words import plain_name

# The Bethesda system, from normal to worst: the order in which ordinal metrics count.
BETHESDA = ("NILM", "ASC-US", "LSIL", "ASC-H", "HSIL", "SCC")
# What says that nothing was found, in any case: never the positive class unless asked for.
_NEGATIVE_WORDS = frozenset(
    "normal benign negative neg nilm healthy control none uninfected no not absent wildtype "
    "wt".split()
)
NEGATIVE = _NEGATIVE_WORDS | {"0", "false", "-", "(-)"}
# What says that something was found: positive beside a word of neither kind (reactive, unknown).
POSITIVE = frozenset(
    "positive pos abnormal cancer cancerous malignant malignancy carcinoma tumor tumour neoplastic "
    "diseased infected present yes true + (+)".split()
)
_NEGATING = ("no", "non", "not", "un")
_DECIMAL = re.compile(r"([+-]?)0*(\d+)(?:\.(\d*?)0*)?")
_RANK = {plain_name(name): rank for rank, name in enumerate(BETHESDA)}


def spelling_key(name: str) -> str:
    """Return what is equal for the spellings of one class: any case, blanks, `0` and `0.0`."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    number = _DECIMAL.fullmatch(text)
    if not number:
        return text
    sign, whole, part = number.groups()
    return f"{sign}{whole}.{part}" if part else f"{sign}{whole}"


def merge_spellings(names: Sequence[str], what: str) -> tuple[tuple[str, ...], list[str]]:
    """Write every name in the most frequent of its spellings; at a tie in the first one.

    Two spellings of one class would be learnt as two, and two of one patient could stand on both
    sides of a split.

    Args:
        names: class names or groups.
        what: "class" or "group", for the notes.

    Returns:
        the names, and a note on each that came in several spellings.
    """
    counts = Counter(names)
    spellings: dict[str, list[str]] = {}
    for name in counts:
        spellings.setdefault(spelling_key(name), []).append(name)
    chosen = {key: max(of, key=counts.__getitem__) for key, of in spellings.items()}
    notes = [
        f"{what} {chosen[key]!r} is also written "
        f"{', '.join(repr(name) for name in of if name != chosen[key])}: taken as one"
        for key, of in spellings.items()
        if len(of) > 1
    ]
    written = {name: chosen[key] for key, of in spellings.items() for name in of}
    return tuple(written[name] for name in names), notes


def class_order(names: Sequence[str]) -> tuple[str, ...]:
    """Order class names, the positive or the worst last.

    Numbers by value; else those that say that nothing was found, then the Bethesda system, then
    the alphabet, then those that say that something was found.
    """
    unique = set(names)
    try:
        return tuple(sorted(unique, key=float))
    except ValueError:
        return tuple(sorted(unique, key=lambda name: (_rank(name, unique), name)))


def bethesda_rank(name: str) -> int | None:
    """Return the place of a class in the Bethesda system, 0 for NILM; None: it is none of it."""
    return _RANK.get(plain_name(name))


def is_bethesda(names: Sequence[str]) -> bool:
    """Tell whether all classes are of the Bethesda system."""
    return all(bethesda_rank(name) is not None for name in names)


def why_positive(classes: Sequence[str], *, chosen: bool) -> str:
    """Say why the last of two classes is the positive one.

    Args:
        classes: in order.
        chosen: by the user.
    """
    first, last = (spelling_key(name) for name in classes)
    if chosen or tuple(classes) != class_order(classes):
        return "as asked for"
    if _says_nothing(classes[0], classes) and not _says_nothing(classes[1], classes):
        return f"{classes[0]!r} says that nothing was found"
    if _says_something(classes[1]) and not _says_something(classes[0]):
        return f"{classes[1]!r} says that something was found"
    if _DECIMAL.fullmatch(first) and _DECIMAL.fullmatch(last):
        return "the larger number"
    if is_bethesda(classes):
        return "the worse of the Bethesda system"
    return "the last of the alphabet; --positive chooses another"


def choose_order(
    found: Sequence[str], classes: Sequence[str] | None, positive: str | None
) -> tuple[str, ...]:
    """Order the classes as the user asks, else by `class_order`.

    Args:
        found: class names of the slides.
        classes: the whole order, or None.
        positive: which of two comes last, or None.

    Raises:
        LabelError: a name that no slide has, a class that is not named, a positive class of
            more than two.
    """
    order = class_order(found) if classes is None else as_found(found, classes, "--classes")
    if positive is None:
        return order
    (name,) = as_found(order, [positive], "--positive", whole=False)
    if len(order) != 2:
        raise LabelError(
            f"--positive {positive}: there are {len(order)} classes ({', '.join(order)}); one of "
            "two is positive.",
            hint="--classes A,B,C orders more than two, the worst last",
        )
    if classes is not None and order[-1] != name:
        raise LabelError(f"--positive {positive}: --classes puts {order[-1]!r} last.")
    return tuple(sorted(order, key=lambda label: label == name))


def as_found(
    found: Sequence[str],
    wanted: Sequence[str],
    option: str,
    *,
    what: str = "slide",
    whole: bool = True,
) -> tuple[str, ...]:
    """Return the classes that an option names, as the table spells them.

    Args:
        found: classes of the table, in any number.
        wanted: what the user wrote.
        option: what it was written after, for messages.
        what: what has a class, for messages.
        whole: all classes must be named.

    Raises:
        LabelError: a class that is not there, is named twice, or is not named.
    """
    spelt = {spelling_key(name): name for name in set(found)}
    absent = [name for name in wanted if spelling_key(name) not in spelt]
    known = ", ".join(class_order(list(found)))
    order = tuple(spelt[spelling_key(name)] for name in wanted if name not in absent)
    left = [name for name in class_order(list(found)) if name not in order]
    hint = f"the classes are {known}"
    if whole and left:
        raise LabelError(f"labels hold classes that `{option}` does not name: {', '.join(left)}.")
    if absent:
        listed = ", ".join(map(repr, absent))
        raise LabelError(f"{option}: no {what} has class {listed}.", hint=hint)
    if len(set(order)) < len(order):
        raise LabelError(f"{option}: a class is named twice.", hint=hint)
    return order


def _rank(name: str, names: set[str]) -> int:
    if _says_nothing(name, sorted(names)):
        return -1
    if _says_something(name):
        return len(BETHESDA) + 1
    rank = bethesda_rank(name)
    return len(BETHESDA) if rank is None else rank


def _says_nothing(name: str, classes: Sequence[str]) -> bool:
    """Tell whether a class is the negative one: by its word, or as the no- or non- of another.

    A phrase counts by its ends: `Negative for malignancy`, `not detected`, `HPV negative`, `ER-`.
    """
    key, plain = spelling_key(name).rstrip("."), plain_name(name)
    words = re.split(r"[^a-z]", key)
    if {key, plain} & NEGATIVE or words[0] in _NEGATIVE_WORDS:
        return True
    if key.endswith(("-", "(-)")) or words[-1] in ("negative", "neg", "free"):
        return True
    others = {plain_name(other) for other in classes}
    return any(plain.removeprefix(word) in others - {plain} for word in _NEGATING)


def _says_something(name: str) -> bool:
    """Tell whether a class is the positive one by its word, or by the end of a phrase."""
    key = spelling_key(name).rstrip(".")
    ends = key.endswith(("+", "(+)")) or re.split(r"[^a-z]", key)[-1] in ("positive", "pos")
    return ends or bool({key, plain_name(name)} & POSITIVE)

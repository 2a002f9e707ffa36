"""Names of slides, steps and files: any length and any letters, or one clear refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli.errors import InputError
from cytofm_cli.store import io, schema
from cytofm_cli.store.staging import aside_of, commit_claim, hidden
from cytofm_cli.work.claim import ClaimHeldError

LONGEST = ["L" * 231, "é" * 115 + "L"]  # 231 bytes each


@pytest.mark.parametrize("slide_id", [*LONGEST, "case 1", "a.b", "Ω"])
def test_check_slide_id__names_that_fit_pass(tmp_path: Path, slide_id: str) -> None:
    io.check_slide_id(tmp_path / "not" / "there", slide_id)


@pytest.mark.parametrize(
    ("slide_id", "said"),
    [
        ("L" * 232, "name of 232 bytes; at most 231 fit"),
        ("é" * 116, "name of 232 bytes; at most 231 fit"),
        ("bad\udce9", "no UTF-8"),
        (".a", "no leading dot"),
        ("a/b", "no / and"),
        ("", "cannot name a slide"),
    ],
)
def test_check_slide_id__others_are_refused(tmp_path: Path, slide_id: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        io.check_slide_id(tmp_path, slide_id)
    assert caught.value.exit_code == 3
    assert "--manifest" in str(caught.value.hint)


@pytest.mark.parametrize("slide_id", LONGEST)
def test_steps_of_the_longest_id__can_be_claimed_and_staged(tmp_path: Path, slide_id: str) -> None:
    steps = ["tile", schema.embedding_step("timm/" + "m" * 300, "tile"), "nuclei/classical"]
    for step in steps:
        with io.claim_step(tmp_path, slide_id, step), io.staging(tmp_path, slide_id, step) as made:
            assert made.is_dir()
            assert made.name.startswith(".")
            with pytest.raises(ClaimHeldError), io.claim_step(tmp_path, slide_id, step):
                pass
            other = slide_id[:-1] + "M"  # differs at its end only
            with io.claim_step(tmp_path, other, step):
                pass
            assert made.is_dir()
    path = io.store_path(tmp_path, slide_id)
    for name in (path, aside_of(path), aside_of(path, "replaced-step"), commit_claim(path)):
        name.mkdir()
        name.rmdir()
    assert not list(tmp_path.iterdir())


def test_hidden__short_names_stay_as_they_are(tmp_path: Path) -> None:
    assert hidden(tmp_path, "s.nuclei.classical") == tmp_path / ".s.nuclei.classical"
    long = hidden(tmp_path, "é" * 200)
    assert len(long.name.encode()) <= 255 - 72
    assert long != hidden(tmp_path, "é" * 199 + "e")


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("timm/vit_small", "timm.vit_small"),
        ("uni", "uni"),
        ("run 1 (old)", "run 1 (old)"),
        ("..", "x.."),
        ("../a", "x...a"),
        ("", "x"),
        ("__a", "x__a"),
        ("zarr.json", "xzarr.json"),
        ("a\nb\0", "a.b."),
    ],
)
def test_node_name__is_one_group_of_a_store(name: str, group: str) -> None:
    assert schema.node_name(name) == group
    assert schema.node_name(group) == group
    assert schema.attention_step(name, "tile") == f"attention/{group}/tile"


def test_node_name__long_ones_keep_their_start_and_differ() -> None:
    names = [schema.node_name("é" * 150 + end) for end in "ab"]
    assert len(set(names)) == 2
    assert all(len(name.encode()) <= 200 and name.startswith("é" * 95) for name in names)
    assert [schema.node_name(name) for name in names] == names

"""`make_report`: what stands on the page is what the RUN and the stores say."""

from __future__ import annotations

import html as entities
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import cytofm_cli as cytofm
from cytofm_cli.api.report import split_words
from cytofm_cli.errors import InputError, OutOfMemoryError, OutputError, UsageError
from cytofm_cli.mil.answers import read_answers
from cytofm_cli.report import evidence, maps
from cytofm_cli.report.answers import read_run
from cytofm_cli.report.config import ReportConfig
from cytofm_cli.report.page import MOST_BYTES
from cytofm_cli.report.report import by_notability, report_page
from cytofm_cli.stats import metrics
from cytofm_cli.stats.compare import compare_runs
from cytofm_cli.store import io

from ..nodes import put_node  # noqa: TID252 - of all tests
from .made_up import evidence_of, many, run_of

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def text_of(page: str) -> str:
    """Return what a reader sees of some HTML."""
    return entities.unescape(re.sub(r"<[^>]+>", " ", page))


def copy(stores: Path, folder: Path) -> Path:
    return Path(shutil.copytree(stores, folder / "stores"))


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report of the trained RUN."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    made = cytofm.make_report(trained.run, trained.stores, out, cells=4)
    assert (made.n_slides, made.n_pictured, made.files) == (12, 12, None)
    assert made.n_bytes == out.stat().st_size
    return out.read_text()


def test_report__every_metric_is_that_of_metrics_json(trained, page: str) -> None:
    told = json.loads((trained.run / "metrics.json").read_text())
    shown = dict(re.findall(r'data-metric="(\w+(?:\.\d)?)">([^<]*)<', page))
    wanted = {key for key, of in told.items() if isinstance(of, dict) and "low" in of}
    assert shown.keys() == wanted
    assert len(wanted) >= 10
    for key, text in shown.items():
        numbers = [float(n) for n in re.findall(r"\d\.\d{3}", text)]
        of = told[key]
        ends = [] if of["low"] is None or of["low"] == of["high"] else [of["low"], of["high"]]
        assert numbers == [round(v, 3) for v in (of["value"], *ends)], key


def test_report__cells_stand_in_order_of_attention(trained, page: str) -> None:
    shown = re.findall(r'alt="cell (\d+) of ([\w-]+): attention ([\d.e-]+)"', page)
    assert len(shown) == 12 * min(4, len(io.open_store(trained.stores / "a-u.zarr").nuclei()))
    for slide in ("a-u", "b-z"):
        store = io.open_store(trained.stores / f"{slide}.zarr")
        values = store.read("attention/run/cell/values")[:, 0]
        mine = [(int(rank), value) for rank, name, value in shown if name == slide]
        assert mine == [(r, f"{v:.3g}") for r, v in enumerate(sorted(values)[::-1][:4], start=1)]
        order = np.argsort(-values, kind="stable")[:4]
        places = re.findall(rf'alt="cell \d+ of {slide}.*?x (\d+), y (\d+)', page, re.DOTALL)
        centres = np.round(store.nuclei().xy_px0[order]).astype(int).tolist()
        assert [[int(x), int(y)] for x, y in places] == centres


def test_report__accuracy_and_auc_follow_from_its_own_rows(trained) -> None:
    run = read_run(trained.run)
    answers = read_answers(trained.run)
    right = run.predicted_S == answers.y_S
    assert right.mean() == pytest.approx(run.metrics["accuracy"]["value"])
    assert float(metrics.macro_auc(answers.y_S, answers.p_SC)) == pytest.approx(
        run.metrics["auc"]["value"], abs=1e-6
    )


def test_report__confusion_counts_by_hand() -> None:
    p = np.array([0.1, 0.6, 0.4, 0.9, 0.2])
    # Thresholds 0.5 of even slides, 0.3 of odd: answers 0, 1, 0, 1, 0.
    run = run_of(np.column_stack([1 - p, p]), [0, 0, 1, 1, 1], thresholds=(0.5, 0.3))
    html = report_page([run], {}, ReportConfig(), "x").html
    table = re.search(r'<table class="confusion">.*?</table>', html, re.DOTALL)
    assert table is not None
    assert re.findall(r'<td class="n[^"]*">(\d+)<', table[0]) == ["1", "1", "2", "1"]
    assert html.count("wrong</td>") == 3


def test_report__runs_are_compared_as_mil_compare_does(trained, tmp_path: Path) -> None:
    other = tmp_path / "mean"
    cytofm.train(
        trained.stores, trained.labels, other, unit="cell", method="mean", folds=3, seeds=1,
        epochs=2, bootstrap=100, encoder="handcrafted",
    )  # fmt: skip
    out = tmp_path / "both.html"
    cytofm.make_report([trained.run, other], trained.stores, out, cells=1)
    (pair,) = compare_runs([read_answers(trained.run), read_answers(other)])
    text = text_of(out.read_text())
    gap = pair.difference
    assert f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" in text
    assert f"{pair.p_adjusted:.3g}" in text.partition("Paired differences")[2][:400]


def test_report__runs_on_other_slides_are_shown_and_not_compared() -> None:
    first, second = many(20), run_of(np.full((4, 2), 0.5), [0, 1, 0, 1], name="other")
    made = report_page([first, second], {}, ReportConfig(), "x")
    assert "Not compared: run and other tested different slides" in text_of(made.html)


def test_report__is_the_same_bytes_again_and_on_more_workers(trained, tmp_path: Path) -> None:
    one, two = tmp_path / "1.html", tmp_path / "2.html"
    cytofm.make_report(trained.run, trained.stores, one, cells=2)
    cytofm.make_report(trained.run, trained.stores, two, cells=2, workers=2)
    assert one.read_bytes() == two.read_bytes()


def test_report__names_of_slides_and_classes_stay_text() -> None:
    slides = [f"{HOSTILE}{i}" for i in range(6)]
    p = np.linspace(0.1, 0.9, 6)
    run = run_of(
        np.column_stack([1 - p, p]), [0, 1, 0, 1, 0, 1], name=HOSTILE,
        classes=(HOSTILE, f"b{HOSTILE}"), slides=slides,
    )  # fmt: skip
    seen = {name: evidence_of(name, warnings=(HOSTILE,)) for name in slides}
    html = report_page([run], seen, ReportConfig(title=HOSTILE), "x").html
    assert html.count("<script>") == 1
    assert "onerror=alert" in entities.unescape(html)
    assert "<img src=x" not in html
    assert "onerror" not in re.sub(r'"[^"]*"', "", html).replace("&lt;img src=x onerror", "")


def test_report__three_classes_have_a_curve_each_and_no_threshold() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], 8)
    p = rng.dirichlet(np.ones(3), 24)
    html = report_page(
        [run_of(p, y.tolist(), classes=("a", "b", "c"))], {}, ReportConfig(), "x"
    ).html
    assert all(f"{name} against the rest" in html for name in "abc")
    assert "there is no threshold" in html


def test_report__one_tested_class_has_no_auc_and_no_curve() -> None:
    p = np.array([0.2, 0.7, 0.4])
    html = report_page(
        [run_of(np.column_stack([1 - p, p]), [0, 0, 0])], {}, ReportConfig(), "x"
    ).html
    assert dict(re.findall(r'data-metric="(\w+)">([^<]*)<', html))["auc"] == "–"
    assert " nan" not in text_of(re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL))


def test_report__without_stores_says_so_and_has_its_numbers(trained, tmp_path: Path) -> None:
    made = cytofm.make_report(trained.run, None, tmp_path / "r.html")
    assert made.warnings[0] == "no STORES are given: no pictures, no quality of slides"
    assert (made.n_slides, made.n_pictured) == (12, 0)


def test_report__what_is_missing_is_told_and_the_rest_shown(trained, tmp_path: Path) -> None:
    stores = copy(trained.stores, tmp_path)
    shutil.rmtree(stores / "a-u.zarr")
    shutil.rmtree(stores / "a-v.zarr" / "attention")
    node = stores / "a-w.zarr" / "zarr.json"
    put_node(node, node.read_text().replace('"schema": 1', '"schema": 9'))
    made = cytofm.make_report(trained.run, stores, tmp_path / "r.html", cells=1)
    told = "\n".join(made.warnings)
    assert "no store of 1 of 12 slides: a-u" in told
    assert "a-v: no attention: the store holds none of this RUN" in told
    assert "has store schema 9" in told
    assert made.n_pictured == 10


def test_report__slide_gone_leaves_overview_and_map(trained, tmp_path: Path) -> None:
    stores = copy(trained.stores, tmp_path)
    shutil.rmtree(stores / "a-u.zarr" / "tiles" / "pixels")
    node = stores / "a-u.zarr" / "zarr.json"
    path = str(io.open_store(stores / "a-u.zarr").slide.path)
    put_node(node, node.read_text().replace(path, "gone/a.png"))
    run = read_run(trained.run)
    job = evidence.SlideJob("a-u", str(stores / "a-u.zarr"), "run", run.digest, "cell", "abnormal")
    seen = evidence.gather(job)
    assert seen.thumbnail is not None
    assert seen.map is not None
    assert all(one.picture is None for one in seen.instances)
    assert len(seen.instances) > 0
    assert "the slide of a-u.zarr is not there" in "".join(seen.warnings)


def test_report__attention_of_another_run_of_the_name_is_not_shown(trained) -> None:
    job = evidence.SlideJob(
        "a-u", str(trained.stores / "a-u.zarr"), "run", "0" * 16, "cell", "abnormal"
    )
    seen = evidence.gather(job)
    assert seen.instances == ()
    assert seen.warnings[-1] == "no attention: the store holds another RUN of this name"


def test_report__failures_beside_the_stores_are_listed(trained, tmp_path: Path) -> None:
    stores = copy(trained.stores, tmp_path)
    record = {"command": "tile", "slide_id": "bad", "path": "p", "error": "<b>is empty</b>."}
    (stores / "failures.jsonl").write_text(json.dumps(record) + "\nno JSON\n")
    cytofm.make_report(trained.run, stores, tmp_path / "r.html", cells=0)
    html = (tmp_path / "r.html").read_text()
    assert "&lt;b&gt;is empty&lt;/b&gt;." in html
    assert "1 slide(s) failed in a step" in html


def test_report__many_pictures_lie_beside_it(monkeypatch, trained, tmp_path: Path) -> None:
    monkeypatch.setattr("cytofm_cli.report.page.MOST_BYTES", 1000)
    out = tmp_path / "r.html"
    made = cytofm.make_report(trained.run, trained.stores, out, cells=1)
    assert made.files == tmp_path / "r_files"
    html = out.read_text()
    names = re.findall(r'src="r_files/(\d{6}\.jpg)"', html)
    assert sorted(names) == sorted(path.name for path in made.files.iterdir())
    assert "data:image" not in html
    monkeypatch.setattr("cytofm_cli.report.page.MOST_BYTES", MOST_BYTES)
    again = cytofm.make_report(trained.run, trained.stores, out, cells=1, overwrite=True)
    assert again.files is None
    assert not (tmp_path / "r_files").exists()


def test_report__more_slides_than_pictures_are_said_and_wrong_ones_are_drawn(
    trained, tmp_path: Path
) -> None:
    run = read_run(trained.run)
    made = cytofm.make_report(trained.run, trained.stores, tmp_path / "r.html", pictures=3, cells=1)
    assert made.n_pictured == 3
    assert any("pictures of 3 of 12 slides" in line for line in made.warnings)
    right = run.predicted_S == run.answers.y_S
    order = by_notability(run)
    assert [bool(right[s]) for s in order] == sorted(bool(r) for r in right)


def test_report__what_exists_is_kept_unless_overwritten(trained, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    out.write_text("mine")
    with pytest.raises(OutputError, match=r"r\.html: exists\."):
        cytofm.make_report(trained.run, None, out)
    assert out.read_text() == "mine"
    (tmp_path / "s_files").mkdir()
    (tmp_path / "s_files" / "thesis.docx").touch()
    with pytest.raises(OutputError, match="holds other things"):
        cytofm.make_report(trained.run, None, tmp_path / "s.html", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        cytofm.make_report(trained.run, None, tmp_path)


def test_report__takes_runs_of_mil_train_alone(trained, tmp_path: Path) -> None:
    for section, command in (("evaluate", "evaluate probe"), ("cells", "cells train")):
        other = tmp_path / section
        other.mkdir()
        (other / "config.toml").write_text(f"[{section}]\n")
        with pytest.raises(InputError, match=f"is a RUN of `cytofm {command}`"):
            cytofm.make_report(other, None, tmp_path / "r.html")
    with pytest.raises(InputError, match="no such RUN"):
        cytofm.make_report(tmp_path / "gone", None, tmp_path / "r.html")
    with pytest.raises(InputError, match="not a finished RUN"):
        cytofm.make_report(trained.stores, None, tmp_path / "r.html")
    with pytest.raises(UsageError, match="is named twice"):
        cytofm.make_report([trained.run, trained.run], None, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_split_words__runs_have_a_config_and_the_first_word_is_one(trained) -> None:
    run, stores = str(trained.run), str(trained.stores)
    assert split_words([run, stores]) == ([run], [stores])
    assert split_words([run, run, stores, stores]) == ([run, run], [stores, stores])
    assert split_words(["gone", stores]) == (["gone"], [stores])


def test_column_for__scores_of_the_class_go_first() -> None:
    names = ("attention_a", "attention_b", "score_a", "score_b")
    assert evidence.column_for(names, "b") == 3
    assert evidence.column_for(names[:2], "b") == 1
    assert evidence.column_for(("attention",), "b") == 0


def test_top_rows__highest_first_and_of_equal_ones_the_first() -> None:
    values = np.array([0.1, 0.5, np.nan, 0.5, 0.9], np.float32)
    assert evidence.top_rows(values, 3).tolist() == [4, 1, 3]


def test_rank_of__equal_values_share_their_place() -> None:
    assert maps.rank_of(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == pytest.approx(
        [5 / 6, 0, 5 / 6, 1 / 3]
    )
    assert maps.rank_of(np.zeros(3)).tolist() == [0.5] * 3


def test_draw_map__the_highest_value_has_the_brightest_dot(trained) -> None:
    store = io.open_store(trained.stores / "a-u.zarr")
    xy = store.nuclei_xy_px0()
    values = np.arange(len(xy), dtype=np.float32)
    picture = maps.thumbnail(store)
    drawn = maps.draw_map(picture, store, xy, values).astype(int)
    scale = picture.shape[1] / store.slide.size_px0[0]
    bright = [drawn[int(y * scale), int(x * scale)].sum() for x, y in xy]
    assert np.argmax(bright) == len(xy) - 1
    assert np.argmin(bright) == 0


@pytest.mark.filterwarnings("ignore::cytofm_cli.errors.CytofmWarning")
def test_report__a_killed_child_leaves_no_page_that_lacks_its_slide(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(job: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("cytofm_cli.api.report.gather", killed)  # the children are forks
    out = tmp_path / "page.html"
    with pytest.raises(OutOfMemoryError, match="was killed, most likely for lack of memory"):
        cytofm.make_report(trained.run, trained.stores, out, fork=True)
    assert not out.exists()

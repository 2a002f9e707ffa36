"""The one reader of tables: dialects that mean the same, and what is refused by line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytofm_cli.errors import InputError, LabelError
from cytofm_cli.tables import Table, match_slide, read_pieces, read_table
from cytofm_cli.words import is_missing, plain_name

NAMES = ("slide_id", "label", "x")


def table_of(tmp_path: Path, text: str | bytes, **options: object) -> Table:
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(path, NAMES, **options)


@pytest.mark.parametrize(
    "text",
    [
        "slide_id,label,x\nA 1,neg,1.5\nB,pos,2\n",
        "slide_id;label;x\nA 1;neg;1,5\nB;pos;2\n",
        "slide_id\tlabel\tx\r\nA 1\tneg\t1,5\r\nB\tpos\t2\r\n",
        "\ufeffslide_id,label,x\rA 1,neg,1.5\rB,pos,2",
        "\n slide_id , label , x \n\n A 1 , neg , 1.5 \n , , \nB, pos, 2 \n\n",
        'sep=;\r\nslide_id;label;x\r\n"A 1";"neg";"1,5"\r\nB;pos;2\r\n',
        "# of May, by Dr. X\n#slide_id,label,x\nA 1,neg,1.5\nB,pos,2\n",
        "slide_id;label;x;;\nA 1;neg;1,5;;\nB;pos;2;;\n",
        '"slide_id", "label", "x"\n"A 1", "neg" ,1.5\n"B" ,pos,2\n',
    ],
    ids="comma semicolon tab bom-cr blanks sep comment trailing quoted".split(),
)
def test_read_table__dialects_mean_the_same(tmp_path: Path, text: str) -> None:
    table = table_of(tmp_path, text)
    assert list(table.columns) == ["slide_id", "label", "x"]
    assert table.columns["slide_id"] == ("A 1", "B")
    assert table.columns["label"] == ("neg", "pos")
    assert table.numbers("x") == [1.5, 2.0]
    assert table.notes == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_read_table__encodings(tmp_path: Path, encoding: str) -> None:
    table = table_of(tmp_path, "slide_id;label\nMüller;NILM\n".encode(encoding))
    assert table.columns["slide_id"] == ("Müller",)
    assert [("Windows-1252" in note) for note in table.notes] == [True] * (encoding == "cp1252")


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"PK\x03\x04", "Excel workbook"),
        (b"\x1f\x8b\x08", "gzip"),
        ("slide_id,label".encode("utf-16-le"), "UTF-16 without"),
        (b"slide_id,label\n\x81\x8d,\n", "no text"),
        (b"", "is empty"),
        (b"\n , \n", "is empty"),
        (b"slide_id,label\n", "no rows"),
    ],
)
def test_read_table__no_table_is_named(tmp_path: Path, start: bytes, what: str) -> None:
    with pytest.raises(LabelError, match=rf"t\.csv: .*{what}"):
        table_of(tmp_path, start, error=LabelError)


def test_read_table__missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_table(path, NAMES)


def test_read_table__separators_inside_quotes_do_not_count(tmp_path: Path) -> None:
    text = 'slide_id;"label, of ""two"""\n"S;1";"a,b\nc, d"\n"S2";"e,f,g"\n'
    table = table_of(tmp_path, text)
    assert table.columns["slide_id"] == ("S;1", "S2")
    assert table.columns['label, of "two"'] == ("a,b\nc, d", "e,f,g")
    assert table.lines == (2, 4)  # a cell of two lines: the next row starts at line 4


def test_read_table__separator_is_what_yields_the_columns_looked_for(tmp_path: Path) -> None:
    text = "slide_id;x,um;y,um\nA;1,5;2,5\nB;2,5;3,5\n"  # commas would make equal rows too
    assert list(table_of(tmp_path, text).columns) == ["slide_id", "x,um", "y,um"]


def test_read_table__one_column(tmp_path: Path) -> None:
    assert table_of(tmp_path, "slide_id\nA\nB\n").columns == {"slide_id": ("A", "B")}


def test_read_table__index_column_without_a_name_is_no_column(tmp_path: Path) -> None:
    table = table_of(tmp_path, ",slide_id,label\n0,A,neg\n1,B,pos\n")
    assert table.columns == {"slide_id": ("A", "B"), "label": ("neg", "pos")}


def test_read_table__commented_rows_are_left_out_and_said(tmp_path: Path) -> None:
    table = table_of(tmp_path, "# note\nslide_id,label\nA,neg\n#B,pos\n# end\nC,pos\n")
    assert table.columns["slide_id"] == ("A", "C")
    assert table.lines == (3, 6)
    (note,) = table.notes
    assert note.endswith("2 line(s) that start with # are left out, first line 4")


def test_read_table__column_called_number_sign_stays(tmp_path: Path) -> None:
    table = table_of(tmp_path, "#,slide_id\n1,A\n2,B\n")
    assert table.columns == {"#": ("1", "2"), "slide_id": ("A", "B")}


def test_read_pieces__are_the_table_in_its_order(tmp_path: Path) -> None:
    rows = [f"{i},{i}.5" for i in range(6)]
    rows.insert(3, "# among the rows")
    (tmp_path / "t.csv").write_text("\n".join(["label,x", *rows]))
    pieces = list(read_pieces(tmp_path / "t.csv", NAMES, n_rows=2))
    assert [len(piece) for piece in pieces] == [2, 2, 2, 0]
    assert [line for piece in pieces for line in piece.lines] == [2, 3, 4, 6, 7, 8]
    assert [x for piece in pieces for x in piece.numbers("x")] == [i + 0.5 for i in range(6)]
    assert [len(piece.notes) for piece in pieces] == [0, 0, 0, 1]  # once, with the last
    assert "1 line(s) that start with # are left out, first line 5" in pieces[-1].notes[0]


def test_read_pieces__name_the_line_of_a_fault(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label,x\nA,1\nB,2\nC,three\nD\n")
    pieces = read_pieces(tmp_path / "t.csv", NAMES, n_rows=1)
    assert [next(pieces).numbers("x"), next(pieces).numbers("x")] == [[1], [2]]
    with pytest.raises(InputError, match="line 4, column x: 'three' is no number"):
        next(pieces).numbers("x")
    with pytest.raises(InputError, match="line 5: 1 cells, but the header has 2"):
        next(pieces)


def test_read_pieces__remember_that_a_comma_is_decimal(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("label\tx\nA\t1,5\nB\t12,345\n")
    pieces = read_pieces(tmp_path / "t.csv", NAMES, n_rows=1)
    assert [piece.numbers("x") for piece in pieces] == [[1.5], [12.345], []]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide_id,label\nA,neg\nB,pos,more\n", "line 3: 3 cells, but the header has 2"),
        ("slide_id,label\nA,neg\n\nB\n", "line 4: 1 cells, but the header has 2"),
        ("slide_id,Slide ID\nA,B\n", "two columns are called 'slide_id' and 'Slide ID'"),
        ("slide_id,label,label\nA,a,b\n", "two columns are called 'label' and 'label'"),
        ('slide_id,label\nA,neg\nB,"pos\nC,neg\n', "line 3: a quote .* never closed"),
        (f"slide_id,label\nA,{'a' * 200_000}\n", "line 2: field larger than"),
    ],
)
def test_read_table__faults_are_named_by_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"t\.csv.*{message}"):
        table_of(tmp_path, text)


def test_read_table__row_names_of_r_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        table_of(tmp_path, "slide_id,label\n1,A,neg\n2,B,pos\n")
    assert "row.names = FALSE" in error.value.one_line()


def test_read_table__text_that_is_no_table_is_told_by_its_columns(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no column slide_id \(found: A text, with commas\)"):
        table_of(tmp_path, "A text, with commas\n\nand more, of them, in places.\nEnd\n")


def test_table__columns_go_by_any_spelling(tmp_path: Path) -> None:
    table = table_of(tmp_path, "Slide-ID,LABEL,Patient ID\nA,neg,7\n")
    assert table.need("slide_id", "slide") == "Slide-ID"
    assert table.find("patient", "patient_id", "label") == ["Patient ID", "LABEL"]
    with pytest.raises(InputError, match=r"no column stage \(found: Slide-ID, LABEL, Patient ID\)"):
        table.need("stage")


def test_table__close_name_is_offered(tmp_path: Path) -> None:
    table = table_of(tmp_path, "slide_id,lable\nA,neg\n")
    with pytest.raises(InputError) as error:
        table.need("label")
    assert "did you mean 'lable'?" in error.value.one_line()


@pytest.mark.parametrize(
    ("cell", "value"),
    [("0,25", 0.25), ("-1,5e3", -1500.0), ("1234,5", 1234.5), ("7", 7.0), ("\u22122,5", -2.5)],
)
def test_numbers__decimal_comma(tmp_path: Path, cell: str, value: float) -> None:
    for delimiter in ";\t":
        table = table_of(tmp_path, f"slide_id{delimiter}x\nA{delimiter}{cell}\n")
        assert table.numbers("x") == [value]


def test_numbers__comma_that_may_be_thousands(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2, column x: '12,345' has a decimal comma or"):
        table_of(tmp_path, "slide_id\tx\nA\t12,345\n").numbers("x")
    assert table_of(tmp_path, "slide_id\tx\nA\t12,345\nB\t1,5\n").numbers("x") == [12.345, 1.5]
    assert table_of(tmp_path, "slide_id;x\nA;12,345\n").numbers("x") == [12.345]
    with pytest.raises(InputError, match=r"'1\.234,5' is no number"):
        table_of(tmp_path, "slide_id;x\nA;1.234,5\n").numbers("x")


@pytest.mark.parametrize("cell", ["abc", "1_000", "inf", "9" * 5000, "1e999", "0.25 um", "1,5"])
def test_numbers__no_number_is_named_by_line_and_column(tmp_path: Path, cell: str) -> None:
    table = table_of(tmp_path, f'slide_id,x\nA,1\nB,"{cell}"\n')
    with pytest.raises(InputError, match=r"t\.csv, line 3, column x: .* is no number") as error:
        table.numbers("x")
    assert len(error.value.one_line()) < 250


def test_numbers__missing_is_a_default_or_refused(tmp_path: Path) -> None:
    table = table_of(tmp_path, "slide_id,x\nA,NA\nB,2\nC,\n")
    assert table.numbers("x", default=-1.0) == [-1.0, 2.0, -1.0]
    with pytest.raises(InputError, match=r"line 2, column x: no number \(the cell is 'NA'\)"):
        table.numbers("x")


def test_is_missing__words_of_r_pandas_and_excel() -> None:
    for cell in ("", " ", "NA", "na", "N/A", "nan", "NaN", "null", "NULL", "#N/A", "<NA>"):
        assert is_missing(cell), cell
    for cell in ("none", "None", "0", "no", "negative", "-"):
        assert not is_missing(cell), cell


def test_plain_name__case_blanks_and_dashes() -> None:
    assert {plain_name(n) for n in ("Patient ID", "patient_id", "PATIENT-ID", " patientId ")} == {
        "patientid"
    }


@pytest.mark.parametrize(
    ("name", "slide"),
    [
        ("A", "A"),
        ("A.svs", "A"),
        ("scans/A.ome.tif", "A"),
        ("D:\\scans\\A.ndpi", "A"),
        ("features/B.1.h5", "B.1"),
        ("B.1", "B.1"),
        ("B.2", None),
        ("C.tif", "C.tif"),
        ("a", None),
    ],
)
def test_match_slide__id_or_file(name: str, slide: str | None) -> None:
    assert match_slide(name, {"A", "B", "B.1", "C", "C.tif"}) == slide


@pytest.mark.parametrize(
    ("name", "flag", "mend"),
    [("labl", "--label", "--label label"), ("labl", "", "Rename it labl")],
)
def test_table__a_column_named_by_an_option_is_mended_there(
    tmp_path: Path, name: str, flag: str, mend: str
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,label\na,1\n")
    with pytest.raises(InputError) as caught:
        read_table(path).need(name, flag=flag)
    assert caught.value.hint == f"did you mean 'label'? {mend}"


def test_table__label_and_group_columns_point_at_their_options(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("slide_id,grade,patient\na,1,p\n")
    with pytest.raises(InputError) as caught:
        read_table(path).label_column("grad", flag="--label")
    assert caught.value.hint == "did you mean 'grade'? --label grade"
    with pytest.raises(InputError) as caught:
        read_table(path).group_column("patint", flag="--group")
    assert caught.value.hint == "did you mean 'patient'? --group patient"

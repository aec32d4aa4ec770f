"""Tables: what ships, what is wrong with a CSV file, and how rows are chosen."""

from pathlib import Path

import pytest

from qarat.ground.errors import UserError
from qarat.stages.laws.tables import COLUMNS, bundled_tables, join, load_table, narrow, read_table, write_table

DECODED = ["fig6", "fig8", *(f"t{i}" for i in (*range(1, 16), 18, 19, 20))]  # T16 and T17 are Figs 6 and 8
NAMES = [*DECODED[:2], "py", "py-budgets", "py-tokens", *DECODED[2:]]
ROW = "mine,f,m,7B,,mxint4,matmul-wise,group,parameters,0.9,32,5.4,perplexity,11,10,no,,text"


def write(folder: Path, *lines: str, header: str = ",".join(COLUMNS)) -> Path:
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_every_table_ships_with_source_and_defects() -> None:
    tables = bundled_tables()
    assert [t.name for t in tables] == NAMES
    for table in tables:
        assert ("arXiv 2410.06722v1, Fig. " if table.name in DECODED else "make laws") in table.source
        assert table.how
        assert table.defects


def test_points_of_the_bundled_tables() -> None:
    first = load_table("t1")
    assert len(first.rows) == 6 * 5
    (point,) = narrow(first, ["model=Qwen1.5-7B", "ratio=0.975"]).rows
    assert (point.size, point.value, point.base_value, point.bits) == (7e9, 12.74, 10.74, pytest.approx(4.3))
    assert point.block is None  # not stated, so not known
    (point,) = narrow(load_table("fig8"), ["size=14B", "ratio=0.95", "block=512"]).rows
    assert (point.metric, point.value, point.base_value) == ("perplexity-increase", 51.6, None)
    assert len(load_table("t15").rows) == 8 * 7 - 1  # OPT-350M at 0.6 is missing in the figure


@pytest.mark.parametrize("name", NAMES)
def test_a_table_comes_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    table = load_table(name)
    path = tmp_path / f"{name}.csv"
    path.write_text(write_table(table))
    assert read_table(path) == table
    assert read_table(path).hash == table.hash


def test_a_users_table(tmp_path: Path) -> None:
    table = load_table(str(write(tmp_path, ROW, "", ROW.replace("0.9", "0.5"))))
    assert (table.name, table.title, [row.ratio for row in table.rows]) == ("mine", "mine.csv", [0.9, 0.5])
    assert table.rows[0].tokens is None
    assert table.rows[0].standard_error is None


def test_every_wrong_line_is_reported_with_its_number(tmp_path: Path) -> None:
    wrong = [
        ROW,
        ROW.replace("7B", "7"),
        ROW.replace("0.9", "90"),
        ROW.replace(",11,", ",eleven,"),
        ROW.replace(",11,", ",,"),
        ROW + ",more",
        ROW.replace(",no,", ",maybe,"),
        ROW.replace("7B", "lots").replace("0.9", "1.5"),
    ]
    path = write(tmp_path, *wrong)
    path.write_text("# title: mine\n" + path.read_text())
    with pytest.raises(UserError) as caught:
        read_table(path)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("mine.csv has 7 wrong entries:")
    assert [line.partition(":")[0] for line in lines[1:]] == [f"line {n}" for n in (4, 5, 6, 7, 8, 9, 10)]
    assert "not billions" in lines[1]
    assert "'eleven' is no number" in lines[3]
    assert "value is empty" in lines[4]
    assert "19 cells in 18 columns" in lines[5]
    assert "neither yes nor no" in lines[6]


def test_a_long_list_of_wrong_lines_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 30 wrong entries") as caught:
        read_table(write(tmp_path, *[ROW.replace("0.9", "90")] * 30))
    assert str(caught.value).endswith("… and 10 more")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (",".join(COLUMNS).replace("ratio,", "", 1), "missing"),
        (",".join(COLUMNS).replace("size", "sizes"), "unknown column 'sizes'; did you mean size"),
        (",".join(COLUMNS) + ",size", "column 'size' twice"),
        ("", "missing: source"),
    ],
)
def test_columns_are_checked(header: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        read_table(write(tmp_path, ROW, header=header))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (",".join(COLUMNS).encode() + b"\n", "has no rows"),
        (b"\xff\xfe\x00", "no UTF-8"),
        (",".join(COLUMNS).encode() + b'\n"open', "line 2"),
        (b"", "missing"),
    ],
)
def test_files_that_are_no_tables(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_table(path)


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"did you mean .*fig8"):
        load_table("fig9")


@pytest.mark.parametrize(
    ("condition", "left"),
    [("block<=512", 36), ("block>512", 11), ("block!=16", 41), ("ratio=0.9", 15), ("size>7B", 23)],
)
def test_rows_are_chosen_by_condition(condition: str, left: int) -> None:
    assert len(narrow(load_table("fig8"), [condition]).rows) == left


def test_conditions_hold_together_and_are_named_in_the_title() -> None:
    table = narrow(load_table("fig8"), ["ratio=0.9", "block<4000"])
    assert len(table.rows) == 14
    assert table.title.endswith("where ratio=0.9, block<4000")
    assert narrow(table, []) == table


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("block", "is no condition"),
        ("block<", "is no condition"),
        ("blocks<4", "no column 'blocks'; did you mean block"),
        ("block<four", "'four' is no number"),
        ("model=gpt", "no rows left where model=gpt"),
        ("tokens>1", "no rows left"),  # not known is neither above nor below
    ],
)
def test_conditions_are_checked(condition: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        narrow(load_table("fig8"), [condition])


def test_tables_are_joined_with_their_sources_named() -> None:
    seven, fourteen = (narrow(load_table("t1"), [f"size={size}"]) for size in ("7B", "14B"))
    both = join([seven, fourteen])
    assert both.rows == seven.rows + fourteen.rows
    assert both.title == f"{seven.title}; {fourteen.title}"
    assert (both.source, both.how, both.defects) == (seven.source, seven.how, seven.defects)  # what all say, once
    assert join([load_table("t1"), load_table("t2")]).source.count("; ") == 1
    assert join([seven]) is seven
    with pytest.raises(UserError, match=r"5 rows of t1 stand in a table before it too: Qwen1\.5-7B"):
        join([seven, load_table("t1")])

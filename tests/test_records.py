"""Records: fields and factors are asked alike, and files of columns give back what was written."""

from __future__ import annotations

import csv
import math
import pickle
import random
import sqlite3
from dataclasses import replace

import pytest

from optscope.errors import UserError
from optscope.evidence.columns import read_csv, write_csv, write_parquet, write_sqlite
from optscope.evidence.records import FIELDS, Record, Records, check_factors, measured

KEEPS = (30, 50)
SOME = Records(
    [Record("filtered", f"{cut}, keep {keep} %", seed, metric, keep + seed / 8, at,
            factors={"cut": cut, "keep": keep})
     for cut in ("low", "high") for keep in KEEPS for seed in (1, 2)
     for metric, at in (("accuracy", None), ("noise", 0.5))]
    + [Record("filtered", "unfiltered", seed, "accuracy", 90.0) for seed in (1, 2)]
    + [Record("spread", "k", 1, "accuracy", math.nan, step=7, phase="twin", rule="k=3", status="diverged", run="ab",
              factors={"k": 2.5})])


def slowly(rows, **wanted):
    """The obvious twin of `where`."""
    def fits(row, name, value):
        has = getattr(row, name) if name in FIELDS else row.factors.get(name)
        return has in value if isinstance(value, (list, tuple, set)) else has == value
    return [row for row in rows if all(fits(row, *each) for each in wanted.items())]


def test_fields_and_factors_are_asked_alike_in_any_order_and_chain():
    draw = random.Random(0)
    questions = {"keep": [30, 30.0, (30, 50), 7], "cut": ["low", {"low", "high"}, "none"], "k": [2.5, None],
                 "seed": [1, [1, 2]], "metric": ["accuracy", "noise"], "experiment": ["filtered", "spread"],
                 "at": [None, 0.5], "phase": ["final", ("final", "twin")], "step": [None, 7], "arm": ["unfiltered"]}
    for _ in range(300):
        wanted = {name: draw.choice(questions[name]) for name in draw.sample(sorted(questions), draw.randint(0, 5))}
        expected = slowly(SOME, **wanted)
        assert list(SOME.where(**wanted)) == expected
        chained = SOME
        for name in draw.sample(sorted(wanted), len(wanted)):
            chained = chained.where(**{name: wanted[name]})
        assert list(chained) == expected
        assert chained.arms() == list(dict.fromkeys(row.arm for row in expected))


def test_what_was_asked_is_found_again_without_a_search():
    assert SOME.where(experiment="filtered", keep=30) is SOME.where(experiment="filtered").where(keep=30)


def test_a_chain_answers_as_its_rows_do():
    low = SOME.where(cut="low", keep=50)
    assert low.by_seed("low, keep 50 %", "accuracy") == {1: 50.125, 2: 50.25}
    assert low.by_seed("low, keep 50 %", "noise", 0.5) == {1: 50.125, 2: 50.25}
    assert low.seeds("low, keep 50 %") == [1, 2]
    a, b = SOME.where(experiment="filtered").pairs("high, keep 30 %", "unfiltered", "accuracy")
    assert (a - b).tolist() == [30.125 - 90, 30.25 - 90]
    assert SOME.axis("noise") == [0.5]
    assert low[0] == SOME[4]
    assert list(low[1:]) == list(low)[1:]


@pytest.mark.parametrize(("name", "said"), [("kep", '"keep"'), ("metrics", '"metric"'), ("banana", "cut, keep, k")])
def test_a_name_that_is_neither_is_named_with_the_nearest(name, said):
    for ask in (lambda rows: rows.where(**{name: 30}), lambda rows: rows.where(experiment="filtered", **{name: 30}),
                lambda rows: rows.levels(name)):
        with pytest.raises(UserError, match=f'called "{name}".*{said}'):
            ask(SOME)


def test_what_others_vary_may_be_asked_and_of_no_rows_anything():
    assert not SOME.where(experiment="spread").where(keep=30)  # the whole has it
    assert not SOME.where(experiment="no such", anything=1)  # an experiment whose runs failed
    assert not Records().where(keep=30)
    assert Records().levels("keep") == []


def test_numbers_of_several_levels_are_not_taken_for_one_another():
    rows = Records(Record("e", "polar", seed, "error", seed / depth, factors={"depth": depth})
                   for depth in (2, 4) for seed in (1, 2))
    assert rows.varied() == ["depth"]
    assert rows.where(depth=4).varied() == []
    assert rows.where(depth=4).by_seed("polar", "error") == {1: 0.25, 2: 0.5}
    for ask in (rows.by_seed, rows.values, lambda arm, metric: rows.pairs(arm, arm, metric)):
        with pytest.raises(UserError, match=r'"error" of polar .* where\(depth=...\): 2, 4'):
            ask("polar", "error")


def test_levels_are_ascending_and_numbers_come_first():
    assert SOME.levels("keep") == [30, 50]
    assert SOME.where(cut="low").levels("seed") == [1, 2]
    assert SOME.levels("cut") == ["high", "low"]
    mixed = Records(Record("e", "a", 1, "m", 0.0, factors={"n": n}) for n in (3, "all", 1.5))
    assert mixed.levels("n") == [1.5, 3, "all"]


@pytest.mark.parametrize("factors", [{"seed": 1}, {"Arm": 1}, {"factors": 1}, {"two words": 1}, {"": 1},
                                     {"keep": "30"}, {"keep": "nan"}, {"keep": ""}, {"keep": math.nan},
                                     {"keep": math.inf}, {"keep": True}, {"keep": None}, {"keep": [1]}])
def test_what_would_not_come_back_from_a_file_is_no_factor(factors):
    with pytest.raises(UserError, match=r"Arm: .*factor"):
        check_factors(factors, "Arm")


def test_a_call_says_its_rows_in_short():
    assert measured("polar", 3, "error", 0.1, 0.2, depth=2, kind="limit") == Record(
        "", "polar", 3, "error", 0.1, 0.2, factors={"depth": 2, "kind": "limit"})
    with pytest.raises(UserError, match=r"of polar: .*got 'run'"):
        measured("polar", 3, "error", 0.1, run=2)


def test_records_hash_and_go_to_another_process():
    assert len({*SOME}) == len(SOME)
    assert list(pickle.loads(pickle.dumps(SOME)).where(keep=30)) == list(SOME.where(keep=30))


def test_a_csv_file_gives_back_what_was_written(tmp_path):
    write_csv(SOME, tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open() as file:
        assert next(csv.reader(file)) == [*FIELDS, "cut", "keep", "k"]
    again = read_csv(str(tmp_path / "summary.csv"))
    assert list(map(repr, again)) == list(map(repr, SOME))  # nan is not nan, and 30 is not 30.0
    kept = [row.factors for row in again.where(cut="low", keep=30)]
    assert all(each is kept[0] for each in kept)


@pytest.mark.parametrize(("text", "said"), [
    ("a,b\n1,2\n", "without the column experiment"), ("", "without the column experiment"),
    (",".join(FIELDS) + "\ne,a,one,m,0.5,,,final,,ok,r\n", "line 2 is not what"),
    (",".join(FIELDS) + "\ne,a,1,m,0.5,,,final,,ok,r\ne,a\n", "line 3 is not what")])
def test_what_is_no_summary_is_told(tmp_path, text, said):
    (tmp_path / "summary.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_csv(tmp_path / "summary.csv")
    with pytest.raises(UserError, match="No such file"):
        read_csv(tmp_path / "none.csv")


def test_columns_are_of_one_kind_each():
    table = SOME.columns()
    assert list(table) == [*FIELDS, "cut", "keep", "k"]
    assert {len(values) for values in table.values()} == {len(SOME)}
    assert table["keep"][0] == 30
    assert table["keep"][-1] is None
    mixed = [Record("e", "a", 1, "m", 0.0, factors={"n": n, "x": x}) for n, x in ((3, 1), ("all", 0.5))]
    found = Records(mixed).columns()
    assert found["n"] == ["3", "all"]
    assert list(map(repr, found["x"])) == ["1.0", "0.5"]


def test_sqlite_has_a_column_a_factor(tmp_path):
    write_sqlite(SOME, tmp_path / "index.sqlite", 7)
    assert [path.name for path in tmp_path.iterdir()] == ["index.sqlite"]
    database = sqlite3.connect(tmp_path / "index.sqlite")
    assert database.execute("pragma user_version").fetchone() == (7,)
    found = database.execute('select seed, value from records where "keep" = 30 and cut = ? and metric = ?',
                             ("low", "accuracy")).fetchall()
    assert found == [(1, 30.125), (2, 30.25)]
    assert database.execute("select count(*) from records where k is null").fetchone() == (len(SOME) - 1,)
    database.close()
    before = (tmp_path / "index.sqlite").read_bytes()
    with pytest.raises(OverflowError):  # which it meets only when it comes to that row
        write_sqlite(Records([*SOME, replace(SOME[0], seed=2**70)]), tmp_path / "index.sqlite", 7)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("index.sqlite", before)]


@pytest.mark.parametrize("rows", [SOME, Records(), Records(SOME[:3])])
def test_lines_stand_under_the_header_as_columns_do(rows):
    assert list(map(repr, rows.lines())) == list(map(repr, zip(*rows.columns().values(), strict=True)))
    assert list(rows.columns()) == rows.header()


def test_parquet_holds_the_same_columns(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_parquet(SOME, tmp_path / "summary.parquet")
    table = parquet.read_table(tmp_path / "summary.parquet")
    expected = {"arm": "string", "seed": "int64", "value": "double", "at": "double", "step": "int64",
                "keep": "int64", "k": "double"}
    assert {name: str(table.schema.field(name).type) for name in expected} == expected
    assert repr(table.to_pydict()) == repr(SOME.columns())
    write_parquet(Records(), tmp_path / "summary.parquet")
    assert parquet.read_table(tmp_path / "summary.parquet").num_rows == 0


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_take_the_columns(library):
    frame = pytest.importorskip(library).DataFrame(SOME.columns())
    assert frame.shape == (len(SOME), len(FIELDS) + 3)
    assert set(frame["keep"].drop_nulls() if library == "polars" else frame["keep"].dropna()) == {30, 50}

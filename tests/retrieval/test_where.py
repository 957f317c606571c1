"""Filters against a slow evaluator in plain Python, through a real SQLite table."""

import json
import re
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.where import Where, WhereError, parse_where


def table(rows):
    """rows: id -> metadata."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE documents (id TEXT PRIMARY KEY, metadata TEXT NOT NULL)")
    texts = [(id, json.dumps(metadata, ensure_ascii=False)) for id, metadata in rows.items()]
    database.executemany("INSERT INTO documents VALUES (?, ?)", texts)
    return database


def matches(database, expression):
    where = parse_where(expression)
    # Around the condition stands what a caller may write: other conditions, other parameters.
    sql = f"SELECT id FROM documents WHERE rowid >= ? AND ({where.sql}) AND rowid < ? ORDER BY rowid"
    return [id for (id,) in database.execute(sql, (0, *where.parameters, 1 << 40))]


# The slow definition: an expression as a tree, its text, and its value (True, False or None: unknown)

MISSING = object()


def look_up(path, id, metadata):
    if path == ["id"]:
        return id
    value = metadata
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def is_number(value):
    return isinstance(value, (bool, int, float))


def plain(value):
    """What equality sees: an array or object is its compact JSON text."""
    if isinstance(value, (list, dict)):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return value


def equal(value, literal):
    value = plain(value)
    return isinstance(value, str) == isinstance(literal, str) and value == literal


def like(value, pattern):
    parts = [".*" if c == "%" else "." if c == "_" else re.escape(c) for c in pattern]
    return re.fullmatch("".join(parts), value, re.DOTALL | re.IGNORECASE | re.ASCII) is not None


def negate(value):
    return None if value is None else not value


def evaluate(tree, id, metadata):
    kind, *rest = tree
    if kind == "not":
        return negate(evaluate(rest[0], id, metadata))
    if kind in ("and", "or"):
        values = [evaluate(part, id, metadata) for part in rest[0]]
        strong = kind == "or"
        return strong if strong in values else None if None in values else not strong
    path, *arguments = rest
    value = look_up(path, id, metadata)
    if kind == "null":
        return value is None
    if value is None:
        return None
    if kind == "=":
        return equal(value, arguments[0])
    if kind == "in":
        return any(equal(value, literal) for literal in arguments[0])
    if kind == "contains":
        if not isinstance(value, list):
            return None
        atoms = [item for item in value if item is not None and not isinstance(item, (list, dict))]
        return any(equal(item, arguments[0]) for item in atoms)
    same = isinstance(value, str) if isinstance(arguments[0], str) else is_number(value)
    if not same:
        return None
    if kind == "like":
        return like(value, arguments[0])
    if kind == "between":
        return arguments[0] <= value <= arguments[1]
    return {"<": value < arguments[0], "<=": value <= arguments[0]}[kind]


def quoted(literal):
    if isinstance(literal, str):
        return "'" + literal.replace("'", "''") + "'"
    return {True: "true", False: "false"}[literal] if isinstance(literal, bool) else repr(literal)


def write(tree, positive=True):
    """The text of a tree; a `not` above a comparison is written into it (`not in`, `>` for `not <=`, ...)."""
    kind, *rest = tree
    no = "" if positive else "NOT "
    if kind == "not":
        return write(rest[0], not positive)
    if kind in ("and", "or"):
        return f"{no}({f' {kind} '.join(write(part) for part in rest[0])})"
    name = ".".join(part if part.isidentifier() else f"`{part.replace('`', '``')}`" for part in rest[0])
    values = rest[1:]
    if kind == "null":
        return f"{name} is {no}null"
    if kind == "in":
        return f"{name} {no}in ({', '.join(map(quoted, values[0]))})"
    if kind == "between":
        return f"{name} {no.lower()}BETWEEN {quoted(values[0])} and {quoted(values[1])}"
    if kind in ("like", "contains"):
        return f"{name} {no}{kind} {quoted(values[0])}"
    opposite = {"=": "!=", "<": ">=", "<=": ">"}[kind]
    return f"{name} {kind if positive else opposite} {quoted(values[0])}"


texts = st.text("aAbé'%_\"0 \n", max_size=3)
numbers = st.one_of(st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, -1.5, 2.0, 1e16, 2**62, -(2**63)]))
scalars = st.one_of(st.none(), texts, numbers)
names = st.sampled_from(["a", "b", "é", "x y", "a.b", "`", "and", "$[0]"])
values = st.one_of(
    scalars, st.lists(st.one_of(scalars, st.lists(scalars, max_size=1)), max_size=3), st.dictionaries(names, scalars)
)
metadatas = st.dictionaries(names, values, max_size=4)
paths = st.one_of(st.lists(names.filter(lambda name: name != "and"), min_size=1, max_size=2), st.just(["and_"]))
literals = st.one_of(texts, numbers)
pairs = st.one_of(st.tuples(texts, texts), st.tuples(numbers, numbers))
ids = st.text("aAb0'", min_size=1, max_size=2)
comparisons = st.one_of(
    st.tuples(st.sampled_from(["=", "<", "<=", "contains"]), paths, literals),
    st.tuples(st.sampled_from(["=", "<", "<=", "like"]), st.just(["id"]), texts),
    st.tuples(st.just("in"), paths, st.lists(literals, min_size=1, max_size=3)),
    st.tuples(st.just("like"), paths, texts),
    st.tuples(st.just("between"), paths, pairs).map(lambda t: (t[0], t[1], *t[2])),
    st.tuples(st.just("null"), paths),
)
trees = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.dictionaries(ids, metadatas, max_size=6), trees)
def test_agrees_with_the_slow_definition(rows, tree):
    expected = [id for id, metadata in rows.items() if evaluate(tree, id, metadata)]
    assert matches(table(rows), write(tree)) == expected


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**30), 10**30))
def test_every_number_finds_itself(real, integer):
    database = table({"real": {"x": real}, "integer": {"x": integer}})
    for number, id in ((real, "real"), (integer, "integer")):
        for expression in (f"x = {number!r}", f"x in ({number!r})", f"x between {number!r} and {number!r}"):
            assert id in matches(database, expression)


PAPERS = {
    "p1": {"year": 2015, "lang": "en", "venue": "arXiv:1", "tags": ["ir"], "author": {"name": "Ann"}, "open": True},
    "p2": {"year": 2021, "lang": "de", "venue": "SIGIR", "tags": [["ir"]], "open": False},
    "p3": {"year": "2015", "lang": None, "tags": "ir"},
    "p4": {},
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("year = 2015", "p1"),
        ("year == 2015.0", "p1"),
        ("year != 2015", "p2 p3"),
        ("year <> 2015", "p2 p3"),
        ("not (year = 2015)", "p2 p3"),
        ("year > 1990", "p1 p2"),
        ("not year > 1990", ""),
        ("year = '2015'", "p3"),
        ('year = "2015"', "p3"),
        ("lang is null", "p3 p4"),
        ("lang is NOT null", "p1 p2"),
        ("lang not in ('en', 'fr')", "p2"),
        ("venue like 'ARXIV%'", "p1"),
        ("venue not like 'arxiv%'", "p2"),
        ("tags contains 'ir'", "p1"),
        ("tags not contains 'ir'", "p2"),
        ("not tags contains 'ir'", "p2"),
        ("tags contains '[\"ir\"]'", ""),
        ("author.name = 'Ann'", "p1"),
        ("`author`.`name` = 'Ann'", "p1"),
        ("`author.name` = 'Ann'", ""),
        ("open = true", "p1"),
        ("open = 0", "p2"),
        ("open >= false", "p1 p2"),
        ("year between 2015 and 2020 or lang = 'de'", "p1 p2"),
        ("lang = 'de' or year = 2015 and lang = 'fr'", "p2"),
        ("(lang = 'de' or year = 2015) and lang = 'en'", "p1"),
        ("Not Not year=2015 AND(lang='en')", "p1"),
        ("id in ('p4', 'p1')", "p1 p4"),
        ("id > 'p2' and `id` != 'p4'", "p3"),
        ("id is null", ""),
        ("YEAR = 2015", ""),
    ],
)
def test_by_hand(expression, expected):
    assert matches(table(PAPERS), expression) == expected.split()


def test_fields_and_parameters():
    where = parse_where("author.name = 'x' and id != 'y' or `a b` in (1, 'z')")
    assert where.fields == {"author.name", "id", "a b"}
    assert where.parameters == ('$."author"."name"', "x", "y", '$."a b"', '[1, "z"]')
    assert where == Where(where.sql, where.parameters, where.fields)


INJECTIONS = [
    "x'); DROP TABLE documents; --",
    "' OR '1'='1",
    '" OR ""="',
    "?1",
    ":name",
    "/* */ -- \\",
    "'' UNION SELECT 1",
    '["a"]',
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_strings_and_names_are_inert(text):
    database = table({"0": {"x": "a"}, "1": {"x": text, "list": [text]}, "2": {"x": "1"}})
    literal = quoted(text)
    between = f"x between {literal} and {literal}"
    for expression in (f"x = {literal}", f"x in ({literal})", f"list contains {literal}", between):
        assert matches(database, expression) == ["1"]
        assert text not in parse_where(expression).sql
    assert matches(database, f"id = {literal}") == []
    name = "`" + text.replace('"', "").replace("\\", "") + "`"
    assert matches(database, f"{name} = 1 or {name} contains 1") == []
    assert matches(database, f"{name} is null") == ["0", "1", "2"]
    assert database.execute("SELECT count(*) FROM documents").fetchone() == (3,)


NAMES = ["a", "a.`b c`", "id", "é"]
OPERATORS = ["=", "<", "in", "like", "between", "is", "contains", "and", "or", "not", "(", ")", ",", ";", "."]
WORDS = [*NAMES, *OPERATORS, "'x'", '"y"', "1", "-2.5", "1e9", "true", "null", "'", "`"]


@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)))
def test_any_text_is_an_expression_or_an_error(text):
    try:
        where = parse_where(text)
    except WhereError:
        return
    table({}).execute(f"SELECT 1 FROM documents WHERE ({where.sql})", where.parameters)


def test_the_limits_hold_in_sqlite():
    database = table({"1": {"x": 1, "t": [1]}})
    hardest = "t contains 0.5"
    for _ in range(10):
        hardest = f"(x = 2 or x = 1 and not {hardest} and x = 1)"
    assert matches(database, f"x = 1 and not {hardest}") == ["1"]  # ten negations make it false
    assert matches(database, " or ".join(["x between 2.5 and 3.5"] * 499 + ["x = 1"])) == ["1"]
    assert matches(database, f"x in ({', '.join(map(str, range(50_000)))})") == ["1"]
    assert matches(database, f"{'not ' * 10_000} x = 1") == ["1"]
    with pytest.raises(WhereError, match="at most 10 nested"):
        parse_where("(" * 11 + "x = 1" + ")" * 11)
    with pytest.raises(WhereError, match="at most 500 comparisons"):
        parse_where(" and ".join(["x = 1"] * 501))
    with pytest.raises(WhereError, match="at most 50000 bytes"):
        parse_where(f"x like '{'é' * 25_001}'")
    assert matches(database, f"t like '{'%' * 50_000}'") == []


@pytest.mark.parametrize(
    ("expression", "problem", "place"),
    [
        ("", "name of a field", 0),
        ("year >= 2000 and )", "name of a field", 17),
        ("year", "expected an operator", 4),
        ("year 2000", "expected an operator", 5),
        ("year = en", "a string in quotes", 7),
        ("year =", "found the end", 6),
        ("x = 'abc", "never closed", 4),
        ("a-b = 1", "backquotes", 1),
        ("(x = 1", "or '\\)'", 6),
        ("x = 1)", "or the end", 5),
        ("x = 1 y = 2", "or the end", 6),
        ("x in 1", "expected '\\('", 5),
        ("x in ()", "a number, a string", 6),
        ("x in (1 2)", "expected ',' or '\\)'", 8),
        ("x between 1 or 2", "expected 'and'", 12),
        ("x between 1 and 'a'", "a number like the lower end", 16),
        ("x between 'a' and 1", "a string like the lower end", 18),
        ("x like 3", "pattern in quotes", 7),
        ("x not = 3", "expected an operator", 6),
        ("x is 3", "'null' or 'not null'", 5),
        ("x is not 3", "expected 'null'", 9),
        ("x = null", "'is null'", 4),
        ("x = 1e999", "64 bits", 4),
        ("x = 12abc", "a number like", 4),
        ("x = 1; y", "unexpected ';'", 5),
        ("like = 3", "backquotes if it is a keyword", 0),
        ("2000 < year", "name of a field", 0),
        ("`` = 3", "holds nothing", 0),
        ('`a"b` = 1', "without double quotes", 0),
        ("id = 5", "ids are strings", 5),
        ("id contains 'a'", "expected an operator", 3),
        ("x = 'a\0'", "not a character", 6),
        ("x = '\ud800'", "not a character", 5),
    ],
)
def test_errors_show_the_place(expression, problem, place):
    with pytest.raises(WhereError, match=problem) as caught:
        parse_where(expression)
    assert caught.value.position == place
    *_, line, caret = str(caught.value).split("\n")
    assert line == f"  {expression}"
    assert caret.index("^") == place + 2


def test_the_caret_stands_under_its_line():
    with pytest.raises(WhereError) as caught:
        parse_where("x = 1\n\tand y = = 3\nor z = 1")
    assert str(caught.value).split("\n")[1:] == ["   and y = = 3", "           ^"]

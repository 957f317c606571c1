"""Filters on metadata: an expression that a person writes becomes a condition that SQLite evaluates.

    year >= 2015 and lang in ('en', 'de') and not (venue like 'arxiv%' or tags contains 'withdrawn')

    comparison   field = != < <= > >= literal          (also == and <>)
                 field [not] in (literal, ...)
                 field [not] between literal and literal
                 field [not] like 'pattern'            % any text, _ one character; A-Z equal a-z, as in SQLite
                 field [not] contains literal          the field is an array that holds the literal
                 field is [not] null                   no such field, or a JSON null
    combined by  not, and, or (the strongest first) and parentheses, at most 10 deep; at most 500 comparisons
    literal      2015, -1.5e3, 'text' or "text" (a quote inside is doubled), true, false
    field        year, author.name (nested), `any name` (a backquote inside is doubled), id (of the document, a string)

Keywords are case-insensitive, fields and strings are not. The rules that surprise:

- Three-valued logic, as in SQL. A document without the field matches no comparison: neither `year = 2015` nor
  `year != 2015` nor `not (year = 2015)`; `is null` finds it. The same holds for `contains` where the field is no array.
- Types count. The string '2001' is not the number 2001: `=` and `in` do not match, `!=` and `not in` do. An order
  (< <= > >= between) or `like` between different types is unknown, like a missing field.
- true and false are the numbers 1 and 0. An array or object equals only its own compact JSON text.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

Literal = str | int | float | bool

_MAX_DEPTH = 10  # the parser of older SQLite libraries has a stack of 100 entries, one level takes up to six
_MAX_COMPARISONS = 500  # SQLite refuses expressions deeper than 1000; a chain of `or` is as deep as it is long
_MAX_PATTERN = 50_000  # bytes, SQLite's limit for LIKE

_KEYWORDS = {"and", "or", "not", "in", "like", "between", "is", "null", "contains", "true", "false"}
_OPERATORS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_NUMBERS = "('integer', 'real', 'true', 'false')"
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
      | (?P<string>'(?:[^']|'')*'|"(?:[^"]|"")*")
      | (?P<name>(?:[^\W\d]\w*|`(?:[^`]|``)+`)(?:\.(?:[^\W\d]\w*|`(?:[^`]|``)+`))*)
      | (?P<symbol>==|!=|<>|<=|>=|[=<>(),])
      | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_NAME_PART = re.compile(r"`((?:[^`]|``)+)`|([^.`]+)")


class WhereError(ValueError):
    """An expression that cannot be read: what was expected, and a caret under the place."""

    def __init__(self, problem: str, expression: str, position: int) -> None:
        start = expression.rfind("\n", 0, position) + 1
        line = expression[start:].split("\n", 1)[0].replace("\t", " ")
        super().__init__(f"{problem}\n  {line}\n  {' ' * (position - start)}^")
        self.position = position


@dataclass(frozen=True, slots=True)
class Where:
    """A condition on the table `documents` (columns `id` TEXT and `metadata` TEXT, a JSON object).

    sql: a boolean SQLite expression with `?` for every value of the user, to stand in parentheses after WHERE.
    parameters: what the `?` stand for, in their order.
    fields: the names that the expression speaks of, nested ones with dots.

    SQLite compares names of fields with the JSON as it is written: write it with `json.dumps(..., ensure_ascii=False)`.
    """

    sql: str
    parameters: tuple[str | int | float, ...]
    fields: frozenset[str]


def parse_where(expression: str) -> Where:
    """Read an expression in the language above. Raises WhereError, which shows the place."""
    for unwanted in re.finditer("[\0\ud800-\udfff]", expression):
        raise WhereError(f"{unwanted.group()!r} is not a character of text", expression, unwanted.start())
    parser = _Parser(expression)
    sql = parser.any_of()
    if parser.token.kind != "end":
        parser.fail("expected 'and', 'or' or the end")
    return Where(sql, tuple(parser.parameters), frozenset(parser.fields))


class _Token(NamedTuple):
    kind: str  # number, string, name, keyword, symbol or end
    text: str  # as written; keywords in lower case
    start: int


class _Parser:
    """Recursive descent. Every method returns SQL and appends the values of its `?` to `parameters`, left to right."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.parameters: list[str | int | float] = []
        self.fields: set[str] = set()
        self.comparisons = 0
        self.depth = 0
        self.end = 0
        self.token = self.read()

    # Tokens

    def read(self) -> _Token:
        match = _TOKEN.match(self.expression, self.end)
        if match is None:
            start = re.compile(r"\s*").match(self.expression, self.end).end()  # type: ignore[union-attr]
            character = self.expression[start]
            if character in "'\"`":
                problem = f"the quote {character} is never closed, or holds nothing"
            elif character.isdigit():
                problem = "expected a number like 5, -0.5 or 1e3"
            else:
                problem = f"unexpected {character!r} (names of more than letters, digits and _ stand in backquotes)"
            raise WhereError(problem, self.expression, start)
        self.end = match.end()
        kind = str(match.lastgroup)
        text, start = match.group(kind), match.start(kind)
        if kind == "name" and text.lower() in _KEYWORDS:
            kind, text = "keyword", text.lower()
        return _Token(kind, text, start)

    def take(self, *texts: str) -> bool:
        """Move on if the next tokens are these keywords or symbols (only the first may be absent)."""
        if self.token.kind not in ("keyword", "symbol") or self.token.text != texts[0]:
            return False
        self.token = self.read()
        for text in texts[1:]:
            if not self.take(text):
                self.fail(f"expected {text!r}")
        return True

    def fail(self, expected: str, at: _Token | None = None) -> NoReturn:
        token = at or self.token
        found = "the end" if token.kind == "end" else token.text
        raise WhereError(f"{expected}, found {found}", self.expression, token.start)

    # Logic. SQL has the same order of strength, so parentheses are needed only where the user wrote them.

    def any_of(self) -> str:
        parts = [self.all_of()]
        while self.take("or"):
            parts.append(self.all_of())
        return " OR ".join(parts)

    def all_of(self) -> str:
        parts = [self.maybe_not()]
        while self.take("and"):
            parts.append(self.maybe_not())
        return " AND ".join(parts)

    def maybe_not(self) -> str:
        negative = False
        while self.take("not"):
            negative = not negative
        return ("NOT " if negative else "") + self.group()

    def group(self) -> str:
        opening = self.token
        if not self.take("("):
            return self.comparison()
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self.fail(f"expected at most {_MAX_DEPTH} nested parentheses", opening)
        inner = self.any_of()
        if not self.take(")"):
            self.fail("expected 'and', 'or' or ')'")
        self.depth -= 1
        return f"({inner})"

    # Comparisons

    def comparison(self) -> str:
        self.comparisons += 1
        if self.comparisons > _MAX_COMPARISONS:
            self.fail(f"expected at most {_MAX_COMPARISONS} comparisons ('in' takes any number of values)")
        path = self.field()
        if self.take("is"):
            negative = "NOT " if self.take("not") else ""
            if not self.take("null"):
                self.fail("expected 'null'" if negative else "expected 'null' or 'not null'")
            return f"{self.value(path)} IS {negative}NULL"
        operator = self.token
        if operator.kind == "symbol" and operator.text in _OPERATORS:
            self.token = self.read()
            return self.ordered(path, _OPERATORS[operator.text])
        negative = "NOT " if self.take("not") else ""
        if self.take("in"):
            return f"{self.value(path)} {negative}IN {self.values(path)}"
        if self.take("between"):
            return self.between(path, negative)
        if self.take("like"):
            return self.like(path, negative)
        if path is not None and self.take("contains"):
            return self.contains(path, negative)
        operators = ("" if negative else "= != < <= > >= is ") + "in between like contains"
        self.fail(f"expected an operator ({operators})")

    def ordered(self, path: str | None, operator: str) -> str:
        literal = self.literal(path)
        if operator in ("=", "!="):
            return f"{self.value(path)} {operator} {self.bind(literal)}"
        guard = self.guard(path, literal)
        return self.guarded(guard, f"{self.value(path)} {operator} {self.bind(literal)}")

    def between(self, path: str | None, negative: str) -> str:
        low = self.literal(path)
        if not self.take("and"):
            self.fail("expected 'and'")
        token = self.token
        high = self.literal(path)
        if isinstance(low, str) != isinstance(high, str):
            self.fail(f"expected {'a string' if isinstance(low, str) else 'a number'} like the lower end", token)
        guard = self.guard(path, low)
        return self.guarded(guard, f"{self.value(path)} {negative}BETWEEN {self.bind(low)} AND {self.bind(high)}")

    def like(self, path: str | None, negative: str) -> str:
        token = self.token
        pattern = self.literal(path)
        if not isinstance(pattern, str):
            self.fail("expected a pattern in quotes", token)
        if len(pattern.encode()) > _MAX_PATTERN:
            raise WhereError(f"expected a pattern of at most {_MAX_PATTERN} bytes", self.expression, token.start)
        guard = self.guard(path, pattern)
        return self.guarded(guard, f"{self.value(path)} {negative}LIKE {self.bind(pattern)}")

    def contains(self, path: str, negative: str) -> str:
        literal = self.literal(path)
        self.parameters += [path, path]
        holds = f"{negative}EXISTS (SELECT 1 FROM json_each(metadata, ?) WHERE atom = {self.bind(literal)})"
        return self.guarded("json_type(metadata, ?) = 'array'", holds)

    # SQL of the parts

    def value(self, path: str | None) -> str:
        if path is None:
            return "id"
        self.parameters.append(path)
        return "json_extract(metadata, ?)"

    def guard(self, path: str | None, literal: Literal) -> str:
        """True where the value has the type of the literal: SQLite puts every text above every number."""
        if path is None:
            return ""
        self.parameters.append(path)
        return "json_type(metadata, ?) " + ("= 'text'" if isinstance(literal, str) else f"IN {_NUMBERS}")

    def guarded(self, guard: str, condition: str) -> str:
        return f"CASE WHEN {guard} THEN {condition} END" if guard else condition

    def bind(self, literal: Literal) -> str:
        if isinstance(literal, str):
            self.parameters.append(literal)
            return "?"
        if isinstance(literal, int) and -(2**63) <= literal < 2**63:
            self.parameters.append(int(literal))
            return "?"
        # Through SQLite's own reader, so that it becomes the very number which the same digits in the metadata become.
        self.parameters.append(repr(literal))
        return "json_extract(?, '$')"

    def values(self, path: str | None) -> str:
        if not self.take("("):
            self.fail("expected '('")
        literals = [self.literal(path)]
        while self.take(","):
            literals.append(self.literal(path))
        if not self.take(")"):
            self.fail("expected ',' or ')'")
        self.parameters.append(json.dumps(literals, ensure_ascii=False))  # one parameter: SQLite limits their number
        return "(SELECT value FROM json_each(?))"

    # Names and literals

    def field(self) -> str | None:
        """The JSON path of a field; None for the document's id."""
        token = self.token
        if token.kind == "keyword":
            self.fail("expected the name of a field (in backquotes if it is a keyword)")
        if token.kind != "name":
            self.fail("expected the name of a field")
        self.token = self.read()
        parts = [quoted.replace("``", "`") or plain for quoted, plain in _NAME_PART.findall(token.text)]
        self.fields.add(".".join(parts))
        if parts == ["id"]:
            return None
        for part in parts:
            if re.search(r'["\\\x00-\x1f]', part):
                self.fail("expected a name without double quotes, backslashes and control characters", token)
        return "$" + "".join(f'."{part}"' for part in parts)

    def literal(self, path: str | None) -> Literal:
        token = self.token
        if path is None and token.kind != "string":
            self.fail("expected a string in quotes (ids are strings)")
        if self.take("true"):
            return True
        if self.take("false"):
            return False
        if token.text == "null" and token.kind == "keyword":
            self.fail("expected a value ('is null' and 'is not null' ask for missing ones)")
        if token.kind not in ("number", "string"):
            self.fail("expected a number, a string in quotes, true or false")
        self.token = self.read()
        if token.kind == "string":
            quote = token.text[0]
            return token.text[1:-1].replace(quote * 2, quote)
        number = float(token.text)
        if not math.isfinite(number):
            self.fail("expected a number that fits 64 bits", token)
        return int(token.text) if re.fullmatch("[+-]?[0-9]+", token.text) else number

"""Hostile template files: none can reach Python, loop for long, or fill the memory; errors name file and line."""

from __future__ import annotations

import time

import pytest

from cai.chat import PromptTemplate
from cai.errors import SpecError

HEAD = "{#---\ndescription: d\nkind: prompt\n---#}\n"


def render(body: str, **values: object) -> str:
    return PromptTemplate.from_text("t", HEAD + body, "t.jinja").render(**values)


@pytest.mark.parametrize(
    "body",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''|attr('__class__') }}",
        "{{ [].__class__.__mro__ }}",
        "{{ x.items.__self__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ range.__module__ }}",
        "{{ dict.mro() }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ '%s' % x }}",
        "{{ ['a'] | map(attribute='__class__') | join }}",
        "{{ lipsum() }}",
        "{{ cycler }}",
        "{{ joiner() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{% for k in x %}{{ x.update({'a': 1}) }}{% endfor %}",
        "{{ [1].append(2) }}",
        "{{ x.pop('a') }}",
        "{{ x.clear() }}",
        "{{ 'a'.encode() }}",
        "{{ (1).to_bytes(9) }}",
        "{{ [1, 2] }}",
        "{{ range }}",
        "{{ missing.attribute }}",
        "{% include 'chatml.jinja' %}",
        "{% import 'chatml.jinja' as c %}",
        "{% from 'chatml.jinja' import c %}",
        "{% extends 'chatml.jinja' %}",
        "{% block b %}{% endblock %}",
        "{% for a in x recursive %}{{ loop(x) }}{% endfor %}",
    ],
)
def test_attacks_on_python_are_errors(body: str) -> None:
    with pytest.raises(SpecError):
        render(body, x={"a": "b"})


BOMBS = {
    "range": "{% for a in range(10**8) %}{% endfor %}",
    "silent loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% set t = 'x' * 1000 %}" + "{% for a in t %}" * 5 + "{% endfor %}" * 5,
    "written": "{% for a in range(9999) %}{{ 'x' * 1000 }}{% endfor %}",
    "multiplied text": "{{ 'x' * 10**10 }}",
    "multiplied list": "{% set a = [1] * 10**9 %}",
    "doubled text": "{% set n = namespace(s='xx') %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled by ~": "{% set n = namespace(s='xx') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubled list": "{% set n = namespace(s=[1]) %}{% for a in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled nested": "{% set n = namespace(s=[1]) %}{% for a in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s | tojson }}",
    "compared nested": "{% set n = namespace(s=[1], t=[1]) %}{% for a in range(60) %}{% set n.s = [n.s, n.s] %}"
    "{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.s == n.t }}",
    "tested nested": "{% set n = namespace(s=[1], t=[1]) %}{% for a in range(60) %}{% set n.s = [n.s, n.s] %}"
    "{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.s is eq(n.t) }}",
    "number": "{% set n = namespace(i=9) %}{% for a in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}",
    "power": "{{ 9**9**9 }}",
    "replace": "{% set s = 'x' * 10**6 %}{{ s.replace('', s) }}",
    "replace filter": "{% set s = 'x' * 10**6 %}{{ s | replace('x', s) }}",
    "join": "{% set s = 'x' * 10**6 %}{{ s.join('y' * 10**6) }}",
    "join filter": "{% set s = 'x' * 10**6 %}{{ ('y' * 10**6) | join(s) }}",
    "collected": "{% set t %}{% for a in range(9999) %}" + "y" * 5000 + "{% endfor %}{% endset %}{{ t | length }}",
    "macro doubling": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "slow turns": "{% set s = 'x' * 4000000 %}{% for a in range(9999) %}{% for b in range(9) %}"
    "{% if 'y' in s[1:] %}{% endif %}{% endfor %}{% endfor %}",
    "rounding": "{{ 1.5 | round(10**9, 'ceil') }}",
    "padding": "{{ 'x'.ljust(10**10) }}",
    "centering": "{{ 'x' | center(10**10) }}",
    "format": "{{ '%10000000000d' | format(1) }}",
    "format method": "{{ '{:10000000000}'.format(1) }}",
    "json indent": "{{ [1] | tojson(indent=10**9) }}",
    "deep source": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested loops in source": "{% for a in 'xy' %}" * 30 + "{% endfor %}" * 30,
    "long source": "x" * 100_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_errors_and_soon(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(SpecError):
        render(BOMBS[name])
    assert time.perf_counter() - start < 5


def test_errors_name_file_and_line() -> None:
    with pytest.raises(SpecError, match=r"^t\.jinja:7: "):
        render("one\ntwo\n{{ 1 / zero }}\n", zero=0)
    with pytest.raises(SpecError, match=r"^t\.jinja:6: "):
        PromptTemplate.from_text("t", HEAD + "one\n{% nonsense %}\n", "t.jinja")
    with pytest.raises(SpecError, match=r"^t\.jinja:5: .*no filter 'centre'"):
        PromptTemplate.from_text("t", HEAD + "{{ a | centre }}", "t.jinja")


def test_a_generation_block_that_cannot_be_placed_is_an_error() -> None:
    with pytest.raises(SpecError, match="cannot be placed"):
        render("{% macro m() %}a{% generation %}b{% endgeneration %}{% endmacro %}{{ m() }}")


def test_contents_are_never_read_as_templates() -> None:
    assert render("{{ x }}", x="{{ 7 * 7 }}{% raw %}{#") == "{{ 7 * 7 }}{% raw %}{#"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("{{ x | tojson }}", '{"a": "<é>", "n": [1, 2]}'),
        ("{% for a in x.n %}{% if loop.index == 2 %}{% break %}{% endif %}{{ a }}{% endfor %}", "1"),
        ("{% for a in x.n %}{{ a }}/{{ loop.length }}{{ ',' if not loop.last }}{% endfor %}", "1/2,2/2"),
        ("{{ 'a' ~ 1 ~ 'b' }}|{{ x.n | length }}|{{ 'x' in x.a }}|{{ x.n == [1, 2] }}", "a1b|2|False|True"),
        ("{% macro m(t) %}[{{ t }}]{% endmacro %}{{ m('z') }}{% set s %}q{{ 1 }}{% endset %}{{ s }}", "[z]q1"),
        ("{{ '-'.join(['a', 'b']) }}{{ 'aXb'.replace('X', '_') }}{{ x.get('zz', 'd') }}", "a-ba_bd"),
        (
            "{{ x.n | map('string') | join('+') }}{{ [{'r': 1}] | selectattr('r', 'equalto', 1) | list | count }}",
            "1+21",
        ),
        ("{% if x.a is string and x.b is not defined %}ok{% endif %}{{ x.n[::-1] | first }}", "ok2"),
        ("{% generation %}{{ x.a }}{% endgeneration %}", "<é>"),
        ("{% for a in x.n %}{{ 'b-c'.replace('-', '+') }}{{ ','.join(['d', 'e']) }}{% endfor %}", "b+cd,eb+cd,e"),
    ],
)
def test_ordinary_templates_work_as_in_jinja(body: str, wanted: str) -> None:
    assert render(body, x={"a": "<é>", "n": [1, 2]}) == wanted

"""Hostile template files: none can reach Python; errors name file and line. Time and memory: test_isolation."""

from __future__ import annotations

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
        "{{ ['a'] | map(attribute='__class__') | join }}",
        "{{ lipsum() }}",
        "{{ cycler }}",
        "{{ joiner() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
        "{{ '' ~ x.items }}",
        "{{ 'a' ~ [1] }}",
        "{{ [1, 2] | random }}",
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


def test_errors_name_file_and_line() -> None:
    with pytest.raises(SpecError, match=r"^t\.jinja:7: "):
        render("one\ntwo\n{{ 1 / zero }}\n", zero=0)
    with pytest.raises(SpecError, match=r"^t\.jinja:6: "):
        PromptTemplate.from_text("t", HEAD + "one\n{% nonsense %}\n", "t.jinja")
    with pytest.raises(SpecError, match=r"^t\.jinja:5: .*No filter named 'centre'"):
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
        ("{{ '%02d' % 7 }}{{ '{:>4}'.format('é') }}{{ x.n | sort(reverse=true) | tojson }}", "07   é[2, 1]"),
        ("{% for a in x.n %}{{ 'b-c'.replace('-', '+') }}{{ ','.join(['d', 'e']) }}{% endfor %}", "b+cd,eb+cd,e"),
    ],
)
def test_ordinary_templates_work_as_in_jinja(body: str, wanted: str) -> None:
    assert render(body, x={"a": "<é>", "n": [1, 2]}) == wanted

"""Constructs of chat templates: what transformers' sandbox makes of each.

    python tests/reference/chat_constructs.py tests/fixtures/chat_constructs.json.gz

Every filter, test, method and slice on values of all types, every operator on pairs of them, and
statements. A case is a template and its text, or that it fails. Left out is what prints an address.
"""

import gzip
import io
import json
import re
import sys

import jinja2
import transformers
from chat_corpus import NOW, SPECIAL, Clock
from transformers.utils import chat_template_utils

chat_template_utils.datetime = Clock
MESSAGES = [
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hé <b>\n\"q\""},
    {"role": "user", "content": "bye"},
]
VALUES = {
    "text": "'abcabc'",
    "mixed": "' Hello, World\\n'",
    "unicode": "'ÀÉ ß 日本'",
    "number": "7",
    "fraction": "2.5",
    "list": "['b', 'A', 3]",
    "numbers": "[3, 1, 2]",
    "records": "[{'n': 'x', 'v': 1}, {'n': 'y', 'v': 3}, {'n': 'X', 'v': 2}]",
    "dict": "{'b': 2, 'a': 1, 'C': [1, none]}",
    "pair": "('a', 2)",
    "nothing": "none",
    "yes": "true",
}
FILTERS = [
    "length", "count", "string", "upper", "lower", "title", "capitalize", "trim", "trim('a')", "trim(' x')", "list", "first", "last", "reverse|list",
    "join", "join(',')", "join(', ', attribute='n')", "sort", "sort(reverse=true)", "sort(attribute='v')", "sort(true)", "unique|list", "int",
    "int(5)", "int(base=16)", "float", "float(1.5)", "abs", "round", "round(1)", "sum", "sum(attribute='v')", "sum(start=10)", "min", "max",
    "min(attribute='v')", "default('d')", "default('d', true)", "d", "tojson", "tojson(indent=2)", "tojson(separators=(',',':'))",
    "tojson(sort_keys=true)", "tojson(ensure_ascii=true)", "tojson(indent=0)", "tojson(indent='\\t')",
    "tojson(indent=1, separators=(',', ': '), sort_keys=True)", "replace('a','X')", "replace('a','X',1)", "replace('','-')", "indent", "indent(2)",
    "indent(2, true)", "indent(2, first=true, blank=true)", "indent('> ')", "wordcount", "truncate(5)", "truncate(5, true)",
    "truncate(6, false, '..', 0)", "center(12)", "items|list", "dictsort", "dictsort(by='value')", "dictsort(true)", "dictsort(reverse=true)",
    "batch(2)|list", "batch(2,'f')|list", "slice(2)|list", "slice(2,0)|list", "map('upper')|list", "map(attribute='n')|list",
    "map(attribute='q', default='z')|list", "map('default','k')|list", "map('string')|join", "select|list", "reject|list", "select('string')|list",
    "select('gt',1)|list", "selectattr('v')|list", "selectattr('n','equalto','x')|list", "rejectattr('v','lt',2)|list", "groupby('n')|list", "escape",
    "e", "safe", "forceescape", "format(1)", "format('a','b')", "attr('a')", "wordcount", "first|upper", "from_json",
]
TESTS = [
    "defined", "undefined", "none", "string", "mapping", "sequence", "iterable", "number", "integer", "float", "boolean", "true", "false", "odd",
    "even", "divisibleby(2)", "divisibleby 3", "lower", "upper", "eq(1)", "ne('abc')", "lt(2)", "ge(1)", "in([1,'abc'])", "sameas(none)",
    "sameas(true)", "escaped", "equalto 'abc'", "gt(0)",
]
METHODS = [
    "upper()", "lower()", "strip()", "lstrip()", "rstrip()", "strip('a')", "lstrip('ab')", "split()", "split(',')", "split(',',1)", "split(None,1)",
    "split(maxsplit=1)", "rsplit(',',1)", "rsplit()", "rsplit(None,1)", "rsplit('b',maxsplit=1)", "partition('b')", "rpartition('b')",
    "partition('zz')", "removeprefix('a')", "removesuffix('c')", "splitlines()", "splitlines(true)", "splitlines(keepends=True)", "title()",
    "capitalize()", "swapcase()", "casefold()", "join(['x','y'])", "join([1,2])", "format(1,2)", "format('a','b')", "find('b')", "find('b',2)",
    "find('b',-3,-1)", "rfind('b')", "index('b')", "rindex('b')", "count('a')", "count('')", "zfill(5)", "zfill(2)", "ljust(8)", "rjust(8,'*')",
    "center(9)", "center(8,'-')", "startswith('a')", "startswith(('x','a'))", "endswith('c')", "startswith('b',1)", "isdigit()", "isalpha()",
    "isalnum()", "isspace()", "islower()", "isupper()", "istitle()", "isascii()", "isnumeric()", "isdecimal()", "isprintable()", "replace('a','b')",
    "replace('a','b',1)", "replace('b','')", "get('a')", "get('zz')", "get('zz','d')", "get('items')", "items()|list", "keys()|list", "values()|list",
    "items()|list|length", "append(1)", "pop()", "extend([1])", "insert(0,1)", "update({})", "setdefault('a',1)", "clear()", "remove(1)", "sort()",
    "reverse()", "index(2)", "count(1)", "copy()", "foo()", "x", "a", "b[0]", "content", "n",
]
SLICES = [
    "[0]", "[-1]", "[10]", "['a']", "['items']", "['x']", "['upper']", "[1:]", "[:2]", "[::-1]", "[::2]", "[-2:]", "[5:1:-1]", "[1:10:3]", "[:-1]",
    "[2:0:-2]", "[10:]", "[-10:2]", "[::-2]", "[0:0]", "[true]", "[none]", "[1.0]", "[-1:0:-1]", "[undef]", "[:undef]",
]
OPERATORS = [
    "+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">", "<=", ">=", "in", "not in", "and", "or",
]
EXPRESSIONS = [
    "'%s-%d' % ('a',3)", "'%5.2f|' % 3.14159", "'%-8s|' % 'ab'", "'%05d' % 42", "'%x %X %o' % (255,255,8)", "'%e' % 12345.678", "'%g' % 0.00001",
    "'%s' % none", "'%r' % 'a'", "'%s %s' % ('a',)", "'%s' % ('a','b')", "'%(a)s' % {'a':1}", "'%%' % ()", "'%c' % 65", "'%c' % 'z'", "'%+d' % 5",
    "'% d' % 5", "'%#x' % 255", "'%s' % [1,'a']", "'%s' % (none,)", "'%i' % 3.9", "'%d' % true", "'%d' % 'x'", "'%10s|' % 'é日'", "'%.2s' % 'abcd'",
    "'%*d' % (5,42)", "5 % 3", "-5 % 3", "5.5 % 2", "-5 // 3", "7 // 2.0", "2 ** 10", "2 ** -1", "2 ** 0.5", "1 < 2 < 3", "3 > 2 > 5",
    "'a' if undef else 'b'", "'a' if undef", "not undef", "(not none) and 'x'", "undef or 'y'", "none or 0", "undef is defined and undef.x",
    "undef.x", "undef['x']", "none.x", "none['x']", "undef()", "'a' 'b'", "-x.y if false else 1", "- 3 | abs", "-3|abs", "1|string + 'a'",
    "{'a':1}.a", "{'a':{'b':2}}.a.b", "{'a':1}['a']", "'abc'[1]", "messages[0]['role']", "messages[-1].content", "dict(a=1,b=2)",
    "dict({'a':1}, b=2)", "dict([('a',1)])", "dict(a=1)|tojson", "namespace(a=1).a", "namespace(items=[1]).items", "range(1,10,3)|list",
    "range(5,0,-2)|list", "cycler('a','b').next()", "'é'|upper", "'ß'|upper", "'İ'|lower", "1/2", "1/0", "1//0", "1%0", "4/2", "1e16", "1e15",
    "123456789.123", "0.1+0.2", "1e400", "-1e-400", "true+1", "'a'*3", "3*'a'", "[1]*2", "'a'*-1", "'a'*none", "(1,)*2", "[1]+[2]", "(1,)+(2,)",
    "[1]+(2,)", "'a'+1", "1+'a'", "'a'+none", "[]+none", "strftime_now('%-d %B %Y')", "strftime_now('%d/%m/%y %H:%M:%S %j %A %a %b %p %I %%')",
    "strftime_now('%-m/%-d/%y %-I:%M %p')", "strftime_now('%F %T %D %R %e|%k|%l %U %W %V %G %u %w %C %h %n%t|')", "strftime_now('%c | %x | %X | %r')",
    "strftime_now('%f %z|%Z|')", "strftime_now('%Q %J')", "strftime_now('%')", "strftime_now('100%')", "'\\x41\\u00e9\\n\\'\\\\'", "'\\q'", "'\\101'",
    "\"a\\\"b\"", "{'a':1,}", "(1)", "(1,)", "'x'.join(messages|map(attribute='role'))", "messages|map(attribute='content')|join('|')",
    "messages|selectattr('role','equalto','user')|list|length", "messages|length", "messages|first", "messages[::-1]|first",
    "messages[1:]|map(attribute='role')|list", "(messages|last).role", "messages|rejectattr('role','in',['user'])|list|tojson",
    "raise_exception('no')", "raise_exception(3)", "undef|default([])|length", "undef|length", "undef|list", "undef|tojson", "none|tojson",
    "none|length", "undef|upper", "none|upper", "undef|trim", "none|trim", "undef~'a'", "none~'a'", "undef in [1]", "1 in undef", "none in [none]",
    "'a' in none", "'b' in 'abc'", "'a' in {'a':1}", "{'a':1}=={'a':1.0}", "1==true", "1==1.0", "'1'==1", "none==false", "undef==none",
    "undef==undef", "none is none", "undef is none", "0 is none", "[1,'a']|sort", "[none,1]|max", "['b','A']|min", "{'a':2}|items|first",
    "'abc'|list", "'abc'|first", "5|list", "none|list", "5|join", "none|join", "'a,b'.split(',')[1]", "'a'.upper().lower()", "'x'|e",
    "'<a>'|e + '<b>'", "'<a>'|safe + '<b>'", "'<a>' + ('<b>'|safe)", "('<a>'|e) ~ '<b>'", "['<']|join('<'|safe)",
]
STATEMENTS = [
    "{% set x = [1] %}{% set x = x + [2] %}{{ x }}", "{% for c in 'abc' %}{{ c }}{{ loop.index }}{{ loop.last }}{{ loop.revindex }},{% endfor %}",
    "{% for k in {'a':1,'b':2} %}{{ k }}{% endfor %}", "{% for k, v in {'a':1,'b':2}.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in {'a':1}|items %}{{ k }}{{ v }}{% endfor %}", "{% for x in undef %}a{% else %}none{% endfor %}",
    "{% for x in none %}a{% else %}none{% endfor %}", "{% for x in 5 %}a{% endfor %}",
    "{% for a, b in [(1,2),[3,4],'xy'] %}{{ a }}{{ b }};{% endfor %}", "{% for a, b in [(1,2,3)] %}{{ a }}{% endfor %}",
    "{% for x in [1,2,3,4] if x is odd %}{{ loop.index }}{{ x }}{{ loop.length }}{% endfor %}",
    "{% for x in [1,2,3] %}{% if x==2 %}{% continue %}{% endif %}{{ x }}{% if x==3 %}{% break %}{% endif %}{% endfor %}",
    "{% for x in [1,2] %}{{ loop.cycle('a','b') }}{{ loop.first }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.changed(x) }}{{ loop.depth }}{% endfor %}",
    "{% set ns = namespace(n=0, l=[]) %}{% for x in [1,2] %}{% set ns.n = ns.n + x %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.n }}{{ ns.l }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b }}", "{% set ns = namespace(_a=1) %}{{ ns._a }}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set x %}a{{ 1 }}b{% endset %}{{ x }}|{{ x|length }}", "{% set x | upper %}abc{% endset %}{{ x }}",
    "{% filter upper %}abc{{ 'd' }}{% endfilter %}",
    "{% macro m(a, b='d', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3) }}{{ m(1, c=4) }}",
    "{% macro m(a) %}{{ a }}{{ undef2 }}{% endmacro %}{{ m() }}|{{ m(1,2) }}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}body{% endcall %}",
    "{% macro m() %}{{ caller('q') }}{% endmacro %}{% call(x) m() %}body{{ x }}{% endcall %}",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}",
    "{% set v = 1 %}{% macro m() %}{{ v }}{% endmacro %}{% set v = 2 %}{{ m() }}", "{% macro m() %}{{ messages|length }}{% endmacro %}{{ m() }}",
    "{% macro r(n) %}{{ n }}{% if n > 0 %}{{ r(n - 1) }}{% endif %}{% endmacro %}{{ r(5) }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% raw %}{{ x }}{% endraw %}", "{# c #}a{#- d -#} b",
    "{%- if true -%} x {%- endif -%} y", "  {% if true %}\n  a\n  {% endif %}\nb\n", "a\n{% set x = 1 %}\nb\n{{ x }}\nc\n\n", "\n\n{{ 1 }}\n",
    "{% if true %}a{% elif false %}b{% else %}c{% endif %}", "{% generation %}x{% set q = 1 %}{% endgeneration %}{{ q }}",
    "{%- generation -%} x {%- endgeneration -%} y", "{% for i in range(3) %}{% generation %}{{ i }}{{ loop.index }}{% endgeneration %}{% endfor %}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% block b %}in{% endblock %}",
    "{% for item in [{'c':[{'c':[]}]}] recursive %}<{{ loop(item.c) }}>{% endfor %}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = [3, 4] %}{{ a }}{{ b }}", "{% set x = messages %}{% set _ = x.append(1) %}{{ x|length }}",
    "{% set d = {'a': 1} %}{% set _ = d.update({'b': 2}) %}{{ d }}", "{% if messages[0].content is string %}S{% else %}L{% endif %}",
    "{% if tools %}T{% endif %}{% if tools is defined %}D{% endif %}{% if tools is none %}N{% endif %}{% if documents is not none %}Q{% endif %}",
    "{% if tools != none %}T{% endif %}{{ tools }}{{ documents }}", "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}",
    "{{ add_generation_prompt }}",
    "{% set loop_messages = messages[1:] %}{% for m in loop_messages %}{{ loop.index0 }}{{ m.role }}{{ loop_messages[loop.index0 - 1].role }}{% endfor %}",
    "{% for m in messages|reverse %}{{ m.role }}{{ loop.length }}{% endfor %}",
    "{% for m in messages|selectattr('role','equalto','user') %}{{ loop.index }}{{ loop.last }}{% endfor %}",
    "{% set users = messages|selectattr('role','equalto','user') %}{{ users|list|length }}{{ users|list|length }}",
    "{% for x in [1,2,3] %}{{ x }}{{ ', ' if not loop.last }}{% endfor %}", "{{ '{{' }}{{ '}}' }}", "{{ \"{%\" }}",
    "{% set a = 'x' %}{{ a if a else 'b' }}{{ ('y' if not a) or 'z' }}", "{% if 'a' in 'abc' and not 'z' in 'abc' %}ok{% endif %}",
    "{% if messages|length > 1 and messages[1].role == 'assistant' %}x{% endif %}",
    "{% set x = {'a': [1,2]} %}{% for i in x.a %}{{ i }}{% endfor %}{{ x.items is defined }}{{ x.values() | list }}", "{{ joiner(',')() }}",
    "{% set j = joiner(',') %}{{ j() }}a{{ j() }}b", "{% set c = cycler('x','y') %}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{% if x is not defined %}nd{% endif %}{% if not x is defined %}nd{% endif %}",
    "{% for k, g in messages|groupby('role') %}{{ k }}:{{ g|length }};{% endfor %}",
    "{% for g in messages|groupby('role') %}{{ g.grouper }}:{{ g.list|length }};{% endfor %}", "{% trans %}x{% endtrans %}", "{% unknown %}",
    "{{ unclosed", "{% if %}{% endif %}", "{% endfor %}", "{{ 1 + }}", "{% macro f(x) %}{% set x = x ~ '!' %}{{ x }}{% endmacro %}{{ f('a') }}",
    "{% for m in messages %}{% set content = m.content %}{% endfor %}{{ content }}", "{%- set ns.x = 1 %}",
    "{% set messages = messages[1:] %}{{ messages|length }}",
    "{% for a in [1,2] %}{% for b in [1,2] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for a in [1,2] %}{% set o = loop %}{% for b in [1] %}{{ o.index }}{{ loop.index }}{% endfor %}{% endfor %}",
    "{{ messages[0].role.upper() ~ ': ' ~ messages[0]['content'] | trim }}", "{{- '\\n' -}} x", "{{ 'a\nb' }}",
    "{{ messages[0].content.split('e') | map('length') | list }}", "{{ (messages|map(attribute='content')|list)[-1] }}",
    "{{ messages|map(attribute='role')|unique|list }}", "{{ [messages[0].content, 'b']|join('\\n') }}",
    "{{ {'type':'function','p':{'x':[1,2.0,None,True]}} | tojson }}",
    "{% set x = namespace(found=false) %}{% for m in messages %}{% if m.role=='assistant' and not x.found %}{% set x.found = true %}{{ loop.index }}{% endif %}{% endfor %}",
]


def templates():
    for name in [*VALUES, "absent"]:
        # Through a variable, so that nothing is computed when the template is compiled.
        given = f"{{% set {name} = {VALUES[name]} %}}" if name in VALUES else ""
        yield from (f"{given}{{{{ {name}|{filter} }}}}" for filter in FILTERS)
        yield from (f"{given}{{{{ {name} is {test} }}}}" for test in TESTS)
        yield from (f"{given}{{{{ {name}.{method} }}}}" for method in METHODS)
        yield from (f"{given}{{{{ {name}{slice} }}}}" for slice in SLICES)
        for other in [*VALUES, "absent"]:
            yield from (f"{given}{{% set other = {VALUES.get(other, 'absent')} %}}{{{{ {name} {operator} other }}}}" for operator in OPERATORS)
    yield from (f"{{{{ {expression} }}}}" for expression in EXPRESSIONS)
    yield from STATEMENTS


def main(out):
    cases = []
    for template in templates():
        try:
            compiled = chat_template_utils._compile_jinja_template(template)
            text = compiled.render(messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True, **SPECIAL)
        except Exception:
            text = None
        if text is None or not re.search(r"object|at 0x", text):
            cases.append([template, text])
    fixture = {
        "versions": {"transformers": transformers.__version__, "jinja2": jinja2.__version__},
        "special": SPECIAL, "now": NOW, "messages": MESSAGES, "cases": cases,
    }
    with gzip.GzipFile(out, "wb", mtime=0) as compressed, io.TextIOWrapper(compressed) as file:
        json.dump(fixture, file, ensure_ascii=False, indent=0)
        file.write("\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

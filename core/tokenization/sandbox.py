"""The jinja2 sandbox that chat templates run in, and its bounds.

A template comes with a model's weights and is foreign code. On jinja2's `ImmutableSandboxedEnvironment` (no access to
underscored attributes or to internals, no change to what it is given, `range` of at most 100,000), this holds:

- it ends: each turn of a loop and each macro call draws on a budget of work, and looks at a deadline;
- it stays small: what it outputs draws on the same budget, and operators, filters and methods refuse, before they
  run, operands whose result could be larger than `MAX_CHARS` or, for those that multiply, `MAX_PRODUCT`.

What is not bounded is memory to the byte: a template may hold several such values at once.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import ext, nodes, sandbox
from jinja2.visitor import NodeTransformer

from core.errors import InvalidRequest, TokenizerError

MAX_CHARS = 16 << 20  # of any one value, and of the whole output
MAX_PRODUCT = 256 << 20  # of the sizes of a value and an argument that may multiply it
MAX_BITS = 4096  # of an integer
MAX_SECONDS = 5.0  # for one rendering

#: Filters whose work and result are bounded by the value's own length: checking it each time would cost more.
_SAFE_FILTERS = frozenset({"length", "count", "first", "last", "default", "d", "items", "select", "reject", "map"})

_WIDE_FORMAT = re.compile(r"\d{5}|%[^%a-zA-Z]*\*|\{[^{}]*\{")  # a width of five digits, or taken from an argument


class TemplateLimit(jinja2.TemplateError):
    """A template exceeded a bound of the sandbox."""


class TemplateRefusal(jinja2.TemplateError):
    """A template called `raise_exception`: it does not take these messages."""


class CompiledTemplate:
    """A template ready to render, from any thread."""

    def __init__(self, environment: ChatEnvironment, template: jinja2.Template, source: str) -> None:
        self._environment = environment
        self._template = template
        self._source = source

    def render(self, variables: dict[str, Any]) -> str:
        """The text. Raises `InvalidRequest` or `TokenizerError` as `ChatTemplate.render`."""
        self._environment.start_budget()
        try:
            return self._template.render(variables)
        except TemplateRefusal as error:
            raise InvalidRequest(f"messages: {error.message}", param="messages") from error
        except (jinja2.exceptions.SecurityError, TemplateLimit, OverflowError, RecursionError, MemoryError) as error:
            raise TokenizerError(f"{self._source}: stopped by the sandbox: {error}") from error
        except Exception as error:  # a template is code, and wrong messages make it raise anything
            raise InvalidRequest(
                f"messages: the chat template cannot render them: {error}", param="messages"
            ) from error


def compile_template(text: str, source: str) -> CompiledTemplate:
    """Compile a template. Raises `TokenizerError` naming `source` and the line where it is not valid."""
    environment = ChatEnvironment()
    try:
        return CompiledTemplate(environment, environment.from_string(text), source)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"{source}, line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, RecursionError, ValueError, SyntaxError) as error:
        raise TokenizerError(f"{source}: not a usable jinja template: {error}") from error


class _Generation(ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Any) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(lineno)


class ChatEnvironment(sandbox.ImmutableSandboxedEnvironment):
    """What transformers gives to chat templates, within bounds. One rendering at a time in each thread."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, ext.loopcontrols],
            finalize=self._charge_output,
        )
        self._budget = threading.local()
        self.start_budget()
        self.filters["tojson"] = _to_json
        unbounded = self.filters.keys() - _SAFE_FILTERS
        self.filters.update({name: _guarded(self.filters[name]) for name in unbounded})
        self.filters["_concat"] = _concat
        del self.filters["urlize"], self.filters["wordwrap"], self.globals["lipsum"]  # slow, and of no use to a prompt
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def start_budget(self) -> None:
        """Give the rendering that begins in this thread its work and its time."""
        self._budget.work = MAX_CHARS
        self._budget.deadline = time.monotonic() + MAX_SECONDS

    def charge(self, work: int) -> str:
        """Draw on the budget of this thread's rendering. Raises `TemplateLimit` when it is spent."""
        self._budget.work -= work
        if self._budget.work < 0:
            raise TemplateLimit(f"more than {MAX_CHARS} characters or loop turns")
        if time.monotonic() > self._budget.deadline:
            raise TemplateLimit(f"more than {MAX_SECONDS} seconds")
        return ""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator of `intercepted_binops`, its result's size checked beforehand."""
        match operator:
            case "+":
                _check_size(_size(left) + _size(right))
            case "*":
                _check_times(left, right)
            case "**":
                _check_power(left, right)
            case "%" if isinstance(left, str):
                _check_format(left)
        return super().call_binop(context, operator, left, right)

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call from the template. Methods of strings and lists are checked like filters."""
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int):
            if method.__name__ in ("format", "format_map"):
                _check_format(str(owner))
            _check_growth(owner, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Instrument().visit(super()._parse(source, name, filename))
        return tree

    def _charge_output(self, value: Any) -> Any:
        self.charge(_size(value))
        return value


class _Instrument(NodeTransformer):
    """Makes loops, macros and `~` of a template answer to the sandbox's bounds."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._charged(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._charged(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._charged(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concat", [], [], None, None, lineno=node.lineno)

    def _charged(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        """Charge one turn, and the template's own text in it, before anything else in the body."""
        work = 1 + sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        function = nodes.EnvironmentAttribute("charge", lineno=node.lineno)
        call = nodes.Call(function, [nodes.Const(work)], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node


# --- the bounds -----------------------------------------------------------------------------------------------


def _size(value: Any, depth: int = 0) -> int:
    """About how many characters `value` prints as. Stops counting beyond `MAX_CHARS`."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 3 + 1
    if not isinstance(value, list | tuple | dict | set) or depth == 64:
        return 32
    total = 2
    for item in value:
        total += 2 + _size(item, depth + 1)
        if isinstance(value, dict):
            total += _size(value[item], depth + 1)
        if total > MAX_CHARS:
            break
    return total


def _check_size(size: int) -> None:
    if size > MAX_CHARS:
        raise TemplateLimit(f"a value of more than {MAX_CHARS} characters")


def _check_times(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > MAX_BITS:
            raise TemplateLimit(f"an integer of more than {MAX_BITS} bits")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int):
            _check_size(_size(value) * max(times, 0))


def _check_power(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MAX_BITS:
        raise TemplateLimit(f"an integer of more than {MAX_BITS} bits")


def _check_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise TemplateLimit(f"a format with a large or a computed width: {text[:40]!r}")


def _check_growth(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check a call whose result may be as large as `value` times its largest argument."""
    size = _size(value)
    _check_size(size)
    for argument in (*args, *kwargs.values()):
        factor = abs(argument) if isinstance(argument, int) else _size(argument)
        if factor * max(size, 1) > MAX_PRODUCT:
            raise TemplateLimit(f"a call that may give more than {MAX_PRODUCT} characters")


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its operands checked. `wraps` keeps jinja2's mark for filters that take the context first."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        value, *rest = args[skipped:] or (None,)
        if function.__name__ == "do_format" and isinstance(value, str):
            _check_format(value)
        _check_growth(value, tuple(rest), kwargs)
        return function(*args, **kwargs)

    return checked


# --- what templates may use -----------------------------------------------------------------------------------


def _concat(parts: list[Any]) -> str:
    _check_size(sum(_size(part) for part in parts))
    return "".join(str(part) for part in parts)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateRefusal(str(message))


def _strftime_now(pattern: str) -> str:
    _check_format(pattern)
    return datetime.datetime.now().strftime(pattern)

"""Requests made by schemathesis from the server's own OpenAPI document: each is answered as the document has it, or refused.

`make fuzz-api` runs it as a script, against a server in front of an engine that answers from a script.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any

import schemathesis
from fake_server import servers
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from plain_http import send
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

#: What the bodies' types require, of all routes.
NEEDED = {"prompt", "messages", "max_tokens", "input", "tokens"}
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


def fuzz(url: str, cases: int, start: int) -> Counter[tuple[str, int]]:
    """How often each operation answered with each status, over `cases` requests, spread evenly.

    Raises schemathesis's FailureGroup for an answer that is a 5xx, or not what the document says, with the request as
    a curl command.
    """
    schema = schemathesis.openapi.from_dict(send(url, "GET", "/openapi.json")[2])
    schema.config.update(base_url=url)
    operations = [found.ok() for found in schema.get_all_operations()]
    statuses: Counter[tuple[str, int]] = Counter()
    # Most of what there is to get wrong is in the bodies.
    weights = [10 if operation.body else 1 for operation in operations]
    for operation, weight in zip(operations, weights, strict=True):
        share = max(1, round(cases * weight / sum(weights)))
        statuses.update(_fuzz_operation(operation, share, start))
    return statuses


def _fuzz_operation(operation: Any, cases: int, start: int) -> Counter[tuple[str, int]]:
    statuses: Counter[tuple[str, int]] = Counter()
    name = f"{operation.method.upper()} {operation.path}"

    @seed(start)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), optional=st.integers(0, 8))
    def ask(case: Any, optional: int) -> None:
        if isinstance(case.body, dict):
            case.body = _thinned(case.body, optional)
        response = case.call()
        statuses[name, response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    ask()
    return statuses


def _thinned(body: dict[str, Any], optional: int) -> dict[str, Any]:
    """A body with few of its optional fields: of all together, one is nearly always refused. No random model is served.

    So it is with messages that say nothing: every other body has some text in each.
    """
    if optional % 2:
        for message in body.get("messages") if isinstance(body.get("messages"), list) else ():
            if isinstance(message, dict):
                message.setdefault("content", "say")
    kept = [name for name in body if name not in NEEDED][:optional]
    return {name: value for name, value in body.items() if (name in NEEDED or name in kept) and name != "model"}


def main() -> int:
    """Run it and say what was answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    with servers() as serve:
        statuses = fuzz(serve().url, arguments.cases, arguments.seed)
    for (name, status), count in sorted(statuses.items()):
        print(f"{name:45} {status} {count:6}")
    print(f"{statuses.total()} requests in {time.monotonic() - started:.1f} s, none failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

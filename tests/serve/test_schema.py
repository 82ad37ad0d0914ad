"""The OpenAPI page tells the truth: what schemathesis makes of it gets no 5xx, and only answers that it describes."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import SecretStr

from llmrec.serve.app import create_app
from llmrec.serve.settings import Limits, ServeSettings

schemathesis = pytest.importorskip("schemathesis")

ADMIN = "a" * 24
EXAMPLES = int(os.environ.get("LLMREC_SCHEMA_EXAMPLES", "10"))
"""Requests of each kind to each endpoint; raise it to look for longer."""


@pytest.fixture(scope="module")
def described(recommender):
    # Low limits, so that random requests reach both sides of them.
    limits = Limits(history=5, items=5, k=20, num_beams=30, new_tokens=12, body_bytes=5000, request_seconds=20)
    app = create_app(recommender, ServeSettings(admin_key=SecretStr(ADMIN), limits=limits))
    return schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})


def statuses_of(operation, mode, checks):
    """The statuses that generated requests to one endpoint get."""
    seen = set()

    @given(case=operation.as_strategy(mode))
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def ask(case):
        answer = case.call(headers={"Host": "localhost", "Authorization": f"Bearer {ADMIN}"})
        case.validate_response(answer, checks=checks)
        seen.add(answer.status_code)

    ask()
    return seen


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_no_request_brings_the_server_down(described, kind):
    from schemathesis.checks import CHECKS, load_all_checks
    from schemathesis.generation import GenerationMode

    load_all_checks()
    checks = CHECKS.get_by_names(
        ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    )
    operations = {found.ok().label: found.ok() for found in described.get_all_operations()}
    assert len(operations) == 10
    if kind == "negative":  # what takes neither a body nor a name cannot be asked wrongly
        operations = {label: one for label, one in operations.items() if "POST" in label or "{" in label}
    statuses = {label: statuses_of(one, GenerationMode(kind), checks) for label, one in operations.items()}
    if kind == "positive":
        assert all(200 in statuses[label] for label in ("GET /v1/models", "GET /health", "GET /metrics")), statuses
    else:
        assert all(seen & {400, 404, 405} for seen in statuses.values()), statuses

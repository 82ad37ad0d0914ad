"""Errors as clients get them: OpenAI's shape, an HTTP status, and what to change.

{"error": {"message": "...", "type": "invalid_request_error", "param": "k", "code": null, "hint": "..."}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from llmrec.errors import LLMRecError, MismatchError
from llmrec.serve.engine import Overloaded, Stopping

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
"""OpenAI's ``error.type`` by status."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    hint: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or more."""

    error: ErrorDetail


class ApiProblem(Exception):  # noqa: N818 - most are the client's
    """A request that cannot be answered."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.detail = ErrorDetail(message=message, type=TYPES[status], param=param, code=code, hint=hint)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return ErrorBody(error=self.detail).model_dump()

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def problem_of(error: Exception) -> ApiProblem:
    """Any exception as a problem; what is not foreseen becomes a 500 without its text."""
    if isinstance(error, ApiProblem):
        return error
    if isinstance(error, Overloaded):
        return ApiProblem(
            429,
            error.message,
            hint=error.hint,
            code="overloaded",
            headers={"Retry-After": str(math.ceil(error.retry_after))},
        )
    if isinstance(error, Stopping):
        return ApiProblem(503, error.message, hint=error.hint, code="stopping", headers={"Retry-After": "5"})
    if isinstance(error, TimeoutError):
        return ApiProblem(504, "The answer took longer than this server allows.", code="timeout")
    if isinstance(error, MismatchError):
        return ApiProblem(409, error.message, hint=error.hint, code="mismatch")
    if isinstance(error, LLMRecError):
        return ApiProblem(400, error.message, hint=error.hint)
    return ApiProblem(500, "The server failed at this request; its log says how.", code="internal")


def install(app: FastAPI) -> None:
    """Answer every error of `app` in OpenAI's shape."""

    async def any_problem(_: Request, error: Exception) -> JSONResponse:
        return problem_of(error).response()

    async def wrong_body(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _validation_problem(error).response()

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        status = error.status_code if error.status_code in TYPES else 400
        return ApiProblem(status, str(error.detail), headers=error.headers).response()

    for kind in (ApiProblem, LLMRecError, TimeoutError, Exception):
        app.add_exception_handler(kind, any_problem)
    app.add_exception_handler(RequestValidationError, wrong_body)
    app.add_exception_handler(HTTPException, http)


def _validation_problem(error: RequestValidationError) -> ApiProblem:
    """All complaints of a body in one message, the first one's place as `param`."""
    found = error.errors()
    if any(one["type"] == "json_invalid" for one in found):
        place = found[0]["loc"][-1]
        why = found[0].get("ctx", {}).get("error", "")
        return ApiProblem(400, f"The body is not JSON: {why} at character {place}.", code="invalid_json")
    lines = []
    for one in found[:10]:
        where = ".".join(str(part) for part in one["loc"] if part != "body")
        lines.append(f"{where}: {one['msg']}" if where else str(one["msg"]))
    rest = f" (and {len(found) - 10} more)" if len(found) > 10 else ""
    param = ".".join(str(part) for part in found[0]["loc"] if part != "body") or None
    hint = "the fields and their bounds are at /docs"
    return ApiProblem(400, "; ".join(lines) + rest, param=param, hint=hint, code="invalid_value")

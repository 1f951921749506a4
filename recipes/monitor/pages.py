"""The pages: the table of trainings, their samples and evaluations, and trackio's pages with the curves.

Nothing here changes anything: of trackio's interface, only what its pages read is served.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import trackio.server
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from recipes.monitor.board import Board, Watched
from recipes.monitor.curves import NUM_DRAWN
from recipes.monitor.samples import COSTLY_SHARE, FILTERS

COOKIE = "tsc_monitor"
MOST_STEPS_BEFORE = 50
# The names of a computer that a browser on it uses. A page of the internet that leads its own name here is not served.
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")

# ends the name of a project with the curves of all its runs
ALL_RUNS = "-all"

# The groups of curves: their title, and a pattern of the metrics' names (empty: all of them).
_POLICY_PANELS = {
    "all curves": "",
    "reward": r"^reward/(score|traffic|term_.*|format|tie)$|^critic/(score|advantages)$",
    "answers": r"^reward/(answer_.*|format_.*|one_sided_steps)",
    "KL and gradient": r"kl|grad_norm|pg_loss|entropy|clipfrac|actor/lr",
    "lengths": r"^(response_length|prompt_length|num_turns)",
    "time of a step": r"^timing_s/|^perf/(time|throughput|mfu)",
    "memory of the workers": r"memory",
    "replays": r"^reward/(outcome_from_.*|audit.*|failed)",
    "validation (VALIDATE_EVERY)": r"^val",
}
_LOSS_PANELS = {"all curves": "", "loss": r"loss|grad|/lr|rewards/", "memory of the workers": r"memory"}

Page = Callable[[Request], Awaitable[Response]]


def application(board: Board, *, token: str | None) -> Starlette:
    """token: what a visitor has to know; None for pages that only this machine can reach."""
    inner, _ = trackio.server.build_starlette_app_only()
    registry = inner.state.api_registry
    inner.state.api_registry = {
        name: _of_newest_runs(function) for name, function in registry.items() if name.startswith(("get_", "list_"))
    }
    inner.state.api_registry["get_all_projects"] = _projects
    pages = _Pages(board)
    return Starlette(
        routes=[
            Route("/", pages.overview),
            Route("/samples/{name:path}", pages.samples),
            Route("/report/{name:path}", pages.report),
            Mount("/", inner),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if token else list(OWN_NAMES)),
            Middleware(_Guard, token=token),
        ],
    )


def _of_newest_runs(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of trackio's interface, for projects that have their newest runs only, and for those named …-all."""
    if next(iter(inspect.signature(function).parameters), "") != "project":
        return function

    @wraps(function)
    def of_project(project: str, *args: Any, **kwargs: Any) -> Any:
        found = function(project.removesuffix(ALL_RUNS), *args, **kwargs)
        if function is trackio.server.get_runs_for_project and not project.endswith(ALL_RUNS):
            return found[-NUM_DRAWN:]
        return found

    return of_project


def _projects() -> list[str]:
    found = trackio.server.get_all_projects()
    return [*found, *(name + ALL_RUNS for name in found if len(trackio.server.get_runs_for_project(name)) > NUM_DRAWN)]


class _Guard(BaseHTTPMiddleware):
    """Lets in who knows the token, and nobody write."""

    def __init__(self, app: Any, token: str | None) -> None:
        super().__init__(app)
        self._token = token

    async def dispatch(self, request: Request, call_next: Page) -> Response:
        if self._token is not None and not self._matches(request.cookies.get(COOKIE)):
            if not self._matches(request.query_params.get("token")):
                return Response("Open the address with ?token=… that scripts/monitor.sh has printed.\n", 401)
            url = request.url.remove_query_params("token")
            answer: Response = RedirectResponse(url)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            return answer
        path = request.url.path
        if request.method not in ("GET", "HEAD") and not path.startswith(("/api/get_", "/api/list_")):
            return Response("These pages only show.\n", 405)
        return await call_next(request)

    def _matches(self, given: str | None) -> bool:
        assert self._token is not None
        return given is not None and secrets.compare_digest(given.encode(), self._token.encode())


class _Pages:
    def __init__(self, board: Board) -> None:
        self._board = board
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
        )

    async def overview(self, _request: Request) -> Response:
        rows = self._board.rows()
        algorithms = sorted({row.algorithm for row in rows})
        panels = {name: _LOSS_PANELS if name in ("sft", "dpo") else _POLICY_PANELS for name in algorithms}
        return self._page("overview", folder=self._board.runs, rows=rows, algorithms=algorithms, panels=panels)

    async def samples(self, request: Request) -> Response:
        watched = self._named(request)
        steps: Sequence[int] = watched.samples.steps or [0]
        step = _number(request, "step", steps[-1])
        before = min(_number(request, "before", 0), MOST_STEPS_BEFORE)
        answers = request.query_params.get("answers", FILTERS[0])
        if answers not in FILTERS:
            raise HTTPException(404, f"answers={answers} is unknown: choose one of {', '.join(FILTERS)}")
        shown = [each for each in steps if step - before <= each <= step]
        return self._page(
            "samples",
            algorithm=watched.training.algorithm,
            run=watched.training.run,
            samples=[sample for each in reversed(shown) for sample in watched.samples.of(each, answers)],
            step=step,
            before=before,
            most_before=MOST_STEPS_BEFORE,
            answers=answers,
            filters=FILTERS,
            first=steps[0],
            last=steps[-1],
            costly_share=COSTLY_SHARE,
        )

    async def report(self, request: Request) -> Response:
        report = self._named(request).training.report
        if report is None:
            raise HTTPException(404, "This run has no evaluation yet.")
        # a report may come from elsewhere: it shows text and pictures, and runs nothing
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox allow-popups"
        return FileResponse(report, media_type="text/html", headers={"Content-Security-Policy": policy})

    def _named(self, request: Request) -> Watched:
        name = request.path_params["name"]
        watched = self._board.get(name)
        if watched is None:
            raise HTTPException(404, f"There is no training {name} here.")
        return watched

    def _page(self, name: str, **values: object) -> Response:
        return HTMLResponse(self._templates.get_template(f"{name}.html.jinja").render(**values))


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, "")
    return int(text) if text.isdecimal() and len(text) < 10 else default

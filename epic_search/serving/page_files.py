"""The page at `/`: its files, and what a browser lets them do.

The page shows text of strangers. Should any of it ever come to be read as markup, the policy has the browser refuse to
run it, to load anything for it, and to send anything to another place.
"""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "page"
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)
# A browser asks whether its copy is still right: another version of the server has other files under the same names.
HEADERS = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}


def install(app: FastAPI) -> None:
    """Answer `/` with the page, and `/page/...` with its parts."""

    @app.get("/", include_in_schema=False)
    async def root() -> FileResponse:
        return FileResponse(FOLDER / "index.html", headers=HEADERS)

    app.mount("/page", _Parts(directory=FOLDER))


class _Parts(StaticFiles):
    """Files with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """See StaticFiles."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response

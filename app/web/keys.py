"""`/keys`: API keys for admins: create, limit, revoke, and what each has used."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import Redirect, Template

from app.access.api_keys import LIMITS_IN_MONEY, ApiKeys, Role
from app.api.dependencies import Runs
from app.api.keys import (
    KeyLimits,
    NewKey,
    change_limits,
    check_mode,
    create,
    key_views,
    revoke,
)
from app.api.middleware.auth import FOR_ADMINS, CallerRequest
from app.api.middleware.csrf import FORM
from app.api.problems import convert
from app.runs import InvalidInput
from app.web.forms import read_form
from app.web.rendering import page

_PATH: Final = "/keys"
_LIMITS: Final[Mapping[str, str]] = {
    "runs_per_day": "Runs a day",
    "tokens_per_day": "Tokens a day",
    "cost_per_day": "Cost a day, $",
    "max_cost": "Cost of a run, $",
    "max_model_calls": "Model calls of a run",
    "max_tokens": "Tokens of a run",
}


@get(_PATH, opt=FOR_ADMINS)
async def show_keys(
    request: CallerRequest,
    api_keys: NamedDependency[ApiKeys],
    needs_key: NamedDependency[bool],
    runs: Runs,
) -> Template:
    check_mode(needs_key)
    return await _page(request, api_keys, runs)


@post(_PATH, opt={**FOR_ADMINS, **FORM}, status_code=200)
async def create_key(
    request: CallerRequest,
    api_keys: NamedDependency[ApiKeys],
    needs_key: NamedDependency[bool],
    runs: Runs,
) -> Template:
    """The response shows the key, once: no address leads to it."""
    check_mode(needs_key)
    form = await read_form(request)
    try:
        named = {name: form[name] for name in ("name", "role") if name in form}
        new = msgspec.structs.replace(convert(named, NewKey, "key"), limits=_limits(form))
        key = await create(api_keys, new)
    except InvalidInput as error:
        return await _page(request, api_keys, runs, problem=str(error), given=form)
    return await _page(request, api_keys, runs, created=key, created_name=new.name)


@post("/keys/{key_id:str}/limits", opt={**FOR_ADMINS, **FORM}, status_code=303)
async def set_limits(
    request: CallerRequest,
    key_id: FromPath[str],
    api_keys: NamedDependency[ApiKeys],
    needs_key: NamedDependency[bool],
    runs: Runs,
) -> Template | Redirect:
    check_mode(needs_key)
    form = await read_form(request)
    try:
        await change_limits(api_keys, key_id, _limits(form))
    except InvalidInput as error:
        return await _page(request, api_keys, runs, problem=str(error))
    return Redirect(_PATH, status_code=303)


@post("/keys/{key_id:str}/revoke", opt={**FOR_ADMINS, **FORM}, status_code=303)
async def revoke_key(
    request: CallerRequest,
    key_id: FromPath[str],
    api_keys: NamedDependency[ApiKeys],
    needs_key: NamedDependency[bool],
) -> Redirect:
    check_mode(needs_key)
    await read_form(request)
    await revoke(api_keys, key_id)
    return Redirect(_PATH, status_code=303)


async def _page(
    request: CallerRequest,
    api_keys: ApiKeys,
    runs: Runs,
    *,
    problem: str = "",
    given: Mapping[str, str] | None = None,
    created: str = "",
    created_name: str = "",
) -> Template:
    views = await key_views(api_keys, runs, request.user)
    return page(
        request,
        "keys.html",
        status_code=400 if problem else 200,
        keys=sorted(views, key=lambda view: view.revoked_at is not None),
        roles=list(Role),
        limits=_LIMITS,
        problem=problem,
        given=given or {},
        created=created,
        created_name=created_name,
    )


def _limits(form: Mapping[str, str]) -> KeyLimits:
    """The limits in a form; an empty field is no limit. Raises InvalidInput."""
    given: dict[str, Any] = {}
    for name in _LIMITS:
        text = form.get(name, "").strip()
        if text:
            given[name] = _number(name, text)
    return convert(given, KeyLimits, "limits")


def _number(name: str, text: str) -> float | int:
    try:
        return float(text) if name in LIMITS_IN_MONEY else int(text)
    except ValueError:
        raise InvalidInput(name, "must be a number") from None

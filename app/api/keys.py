"""`/api/keys`: API keys, for admins: list, create, limit, revoke."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import msgspec
from litestar import Router, get, post, put
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException, PermissionDeniedException
from litestar.params import FromPath, JSONBody

from app.access.api_keys import LIMITS, LIMITS_IN_MONEY, ApiKey, ApiKeys, Role
from app.access.callers import Caller
from app.api.budget_fields import MaxCost, MaxCount
from app.api.dependencies import Runs
from app.api.errors import error_responses
from app.api.middleware.auth import FOR_ADMINS, CallerRequest
from app.prices import nanos, usd
from app.runs import RunService, UsageFilter, UsageRow, clean_text

_MAX_NAME_CHARACTERS: Final = 100
_DAYS: Final = 30
"""The limits that are in USD."""

_FORBIDDEN: Final = "The key is not an admin's, or the service uses no keys"
_UNKNOWN: Final = "There is no such key"


class KeyLimits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The limits of a key; null for none of its own.

    `runs_per_day`, `tokens_per_day` and `cost_per_day` override the service's settings. `max_cost`,
    `max_model_calls` and `max_tokens` are the budget of each run. Costs are in USD, and need
    PRICES_FILE.
    """

    runs_per_day: MaxCount | None = None
    tokens_per_day: MaxCount | None = None
    cost_per_day: MaxCost | None = None
    max_cost: MaxCost | None = None
    max_model_calls: MaxCount | None = None
    max_tokens: MaxCount | None = None


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key to create.

    A `user` sees the runs of the key alone, an `admin` all runs, keys and operations. A key for
    `metrics` reads these, and nothing else.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=_MAX_NAME_CHARACTERS)]
    role: Role = Role.USER
    limits: KeyLimits = msgspec.field(default_factory=KeyLimits)


class KeyUsage(msgspec.Struct):
    """The usage of the runs of a key; `cost` is in USD, null if no call has a price."""

    runs: int = 0
    calls: int = 0
    tokens: int = 0
    cost: float | None = None


class KeyView(msgspec.Struct, kw_only=True):
    """A key without its secret. The usage is that of today and of the last 30 days (UTC)."""

    id: str
    name: str
    role: Role
    limits: KeyLimits
    created_at: datetime
    revoked_at: datetime | None
    today: KeyUsage
    last_30_days: KeyUsage


class CreatedKey(KeyView, kw_only=True):
    """A new key. `key` is not shown again."""

    key: str


class KeyList(msgspec.Struct):
    """All keys, revoked ones included, oldest first."""

    keys: list[KeyView]


@get("/", summary="List API keys", responses=error_responses({403: _FORBIDDEN}))
async def list_keys(
    api_keys: NamedDependency[ApiKeys],
    needs_key: NamedDependency[bool],
    runs: Runs,
    request: CallerRequest,
) -> KeyList:
    check_mode(needs_key)
    return KeyList(await key_views(api_keys, runs, request.user))


@post("/", summary="Create an API key", responses=error_responses({403: _FORBIDDEN}))
async def create_key(
    data: JSONBody[NewKey], api_keys: NamedDependency[ApiKeys], needs_key: NamedDependency[bool]
) -> CreatedKey:
    """The response has the key, which can't be shown again."""
    check_mode(needs_key)
    key = await create(api_keys, data)
    view = _view(await _found(api_keys, key.split("_")[1]), KeyUsage(), KeyUsage())
    return CreatedKey(**msgspec.structs.asdict(view), key=key)


@put(
    "/{key_id:str}/limits",
    summary="Replace the limits of an API key",
    responses=error_responses({403: _FORBIDDEN, 404: _UNKNOWN}),
)
async def set_key_limits(
    key_id: FromPath[str],
    data: JSONBody[KeyLimits],
    api_keys: NamedDependency[ApiKeys],
    needs_key: NamedDependency[bool],
) -> KeyLimits:
    """All processes know them within a second. A run that is accepted keeps those that it has."""
    check_mode(needs_key)
    await change_limits(api_keys, key_id, data)
    return data


@post(
    "/{key_id:str}/revoke",
    status_code=204,
    summary="Revoke an API key for good",
    responses=error_responses({403: _FORBIDDEN, 404: _UNKNOWN}),
)
async def revoke_key(
    key_id: FromPath[str], api_keys: NamedDependency[ApiKeys], needs_key: NamedDependency[bool]
) -> None:
    """All processes refuse it within a second, and end its requests. Its runs stay."""
    check_mode(needs_key)
    await revoke(api_keys, key_id)


keys_router = Router(
    "/api/keys",
    route_handlers=[list_keys, create_key, set_key_limits, revoke_key],
    opt=FOR_ADMINS,
    tags=["keys"],
)


async def key_views(api_keys: ApiKeys, runs: RunService, caller: Caller) -> list[KeyView]:
    """All keys with their usage, oldest first."""
    today = datetime.now(UTC).date()
    used_today, used = [
        {
            row.groups["key"]: row
            for row in await runs.usage(UsageFilter(from_day=first, to_day=today), ["key"], caller)
        }
        for first in (today, today - timedelta(_DAYS - 1))
    ]
    return [
        _view(key, _usage(used_today.get(key.key_id)), _usage(used.get(key.key_id)))
        for key in await api_keys.all()
    ]


async def create(api_keys: ApiKeys, new: NewKey) -> str:
    """Create a key and return it. Raises InvalidInput."""
    name = clean_text(new.name, "name", _MAX_NAME_CHARACTERS)
    return await api_keys.create(name, new.role, **_stored(new.limits))


async def change_limits(api_keys: ApiKeys, key_id: str, limits: KeyLimits) -> None:
    """Replace the limits of a key. Raises NotFoundException."""
    if not await api_keys.set_limits(key_id, _stored(limits)):
        raise _unknown(key_id)


async def revoke(api_keys: ApiKeys, key_id: str) -> None:
    """Revoke a key. Raises NotFoundException."""
    if not await api_keys.revoke(key_id):
        raise _unknown(key_id)


def check_mode(needs_key: bool) -> None:
    """With AUTH=off, a caller of any kind could create a key that stays valid with AUTH=keys."""
    if not needs_key:
        problem = "the service uses no keys (AUTH=off); crew-capture keys manages them"
        raise PermissionDeniedException(problem)


async def _found(api_keys: ApiKeys, key_id: str) -> ApiKey:
    found = await api_keys.get(key_id)
    if found is None:
        raise _unknown(key_id)
    return found


def _unknown(key_id: str) -> NotFoundException:
    return NotFoundException(f"no key has the id {key_id[:_MAX_NAME_CHARACTERS]}")


def _stored(limits: KeyLimits) -> dict[str, int | None]:
    given: Mapping[str, float | None] = msgspec.structs.asdict(limits)
    return {
        name: nanos(value) if name in LIMITS_IN_MONEY and value is not None else value  # type: ignore[misc]
        for name, value in given.items()
    }


def _view(key: ApiKey, today: KeyUsage, last_30_days: KeyUsage) -> KeyView:
    limits: dict[str, Any] = {**dict.fromkeys(LIMITS), **key.limits}
    for name in LIMITS_IN_MONEY & key.limits.keys():
        limits[name] = usd(limits[name])
    return KeyView(
        id=key.key_id,
        name=key.name,
        role=Role(key.role),
        limits=KeyLimits(**limits),
        created_at=key.created_at,
        revoked_at=key.revoked_at,
        today=today,
        last_30_days=last_30_days,
    )


def _usage(row: UsageRow | None) -> KeyUsage:
    if row is None:
        return KeyUsage()
    tokens = row.input_tokens + row.output_tokens
    return KeyUsage(row.runs, row.calls, tokens, None if row.cost is None else usd(row.cost))

"""`crew-capture keys`: API keys, in the database that the settings name."""

from app.access.api_keys import ApiKeys, Role
from app.resources import open_database
from app.settings import Settings


async def create(settings: Settings, name: str, role: str, **quota: int | None) -> str:
    async with open_database(settings) as database:
        return await ApiKeys(database).create(name, Role(role), **quota)


async def table(settings: Settings) -> str:
    """A line for each key, under a heading."""
    async with open_database(settings) as database:
        keys = await ApiKeys(database).all()
    lines = ["ID            ROLE   CREATED     REVOKED     NAME"]
    for key in keys:
        revoked = f"{key.revoked_at:%Y-%m-%d}" if key.revoked_at else "-"
        lines.append(
            f"{key.key_id:<13} {key.role:<6} {key.created_at:%Y-%m-%d}  {revoked:<10}  {key.name}"
        )
    return "\n".join(lines)


async def revoke(settings: Settings, key_id: str) -> bool:
    async with open_database(settings) as database:
        return await ApiKeys(database).revoke(key_id)

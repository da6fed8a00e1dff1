"""Upgrades the schema with Alembic, whose import costs as much as a small process."""

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from app.db.migrate import MIGRATIONS, DatabaseTooNew


def upgrade(connection: Connection) -> tuple[str | None, str | None]:
    """Upgrade the schema; its revisions before and after."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    _refuse_newer(connection, ScriptDirectory.from_config(config))
    before = MigrationContext.configure(connection).get_current_revision()
    command.upgrade(config, "head")
    return before, MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(connection: Connection, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise DatabaseTooNew(
                f"the database has the schema {revision} of a newer version; this version's newest "
                f"is {scripts.get_current_head()}: install the newer version, or name another "
                "database in DATABASE_URL"
            )

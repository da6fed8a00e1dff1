"""SQLAlchemy's internals: `app.db` switches on batched inserts that SQLite's dialect leaves off."""

from app.pins.pin import Pin

PINS: tuple[Pin, ...] = (
    Pin(
        "sqlalchemy.sql.crud:_get_returning_modifiers",
        "c90d5a008934",
        "reads the dialect's `use_insertmanyvalues_wo_returning`",
    ),
)

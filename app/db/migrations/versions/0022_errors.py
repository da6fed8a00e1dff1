"""The newest runs of each type of error."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0019"

_HAS_ERROR = sa.text("error_type IS NOT NULL")


def upgrade() -> None:
    op.create_index(
        "user_runs_newest_with_error",
        "user_runs",
        ["error_type", "created_at", "run_id"],
        sqlite_where=_HAS_ERROR,
        postgresql_where=_HAS_ERROR,
    )


def downgrade() -> None:
    op.drop_index("user_runs_newest_with_error", "user_runs")

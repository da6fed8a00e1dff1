"""The metadata of runs, and the newest runs that have any."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_HAS_METADATA = sa.text("run_metadata IS NOT NULL")


def upgrade() -> None:
    op.add_column("user_runs", sa.Column("run_metadata", sa.JSON(), nullable=True))
    op.create_index(
        "user_runs_newest_with_metadata",
        "user_runs",
        ["created_at", "run_id"],
        sqlite_where=_HAS_METADATA,
        postgresql_where=_HAS_METADATA,
    )


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_index("user_runs_newest_with_metadata")
        table.drop_column("run_metadata")

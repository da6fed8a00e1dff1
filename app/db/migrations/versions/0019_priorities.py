"""The priority of a run, and the time before which it does not begin."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"

_WAITS_FOR_ITS_TIME = sa.text("not_before IS NOT NULL AND status = 'queued'")


def upgrade() -> None:
    op.add_column(
        "user_runs", sa.Column("priority", sa.Integer(), server_default="0", nullable=False)
    )
    op.add_column("user_runs", sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "user_runs_not_before",
        "user_runs",
        ["not_before"],
        sqlite_where=_WAITS_FOR_ITS_TIME,
        postgresql_where=_WAITS_FOR_ITS_TIME,
    )


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_index("user_runs_not_before")
        table.drop_column("not_before")
        table.drop_column("priority")

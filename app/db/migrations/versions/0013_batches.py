"""The batch of a run, and the newest batches."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_IN_A_BATCH = sa.text("batch_id IS NOT NULL")


def upgrade() -> None:
    op.add_column("user_runs", sa.Column("batch_id", sa.Uuid(), nullable=True))
    for name, columns in (
        ("user_runs_of_batch", ["batch_id"]),
        ("user_runs_batches_of_owner", ["owner", "batch_id"]),
    ):
        op.create_index(
            name, "user_runs", columns, sqlite_where=_IN_A_BATCH, postgresql_where=_IN_A_BATCH
        )


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_index("user_runs_batches_of_owner")
        table.drop_index("user_runs_of_batch")
        table.drop_column("batch_id")

"""Events of runs, and the options of a run."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.add_column(sa.Column("idempotency_key", sa.String(255), nullable=True))
        table.add_column(sa.Column("request_digest", sa.String(64), nullable=True))
        table.add_column(sa.Column("stream", sa.Boolean(), nullable=True))
        table.create_index("user_runs_idempotency_key", ["idempotency_key"], unique=True)
        table.create_index("user_runs_newest", ["created_at", "run_id"])
        table.create_index("user_runs_of_worker", ["worker", "status"])
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.Uuid(), primary_key=True),
        sa.Column("seq", sa.BigInteger(), primary_key=True),
        sa.Column("type", sa.String(40), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("run_events")
    with op.batch_alter_table("user_runs") as table:
        table.drop_index("user_runs_of_worker")
        table.drop_index("user_runs_newest")
        table.drop_index("user_runs_idempotency_key")
        table.drop_column("stream")
        table.drop_column("request_digest")
        table.drop_column("idempotency_key")

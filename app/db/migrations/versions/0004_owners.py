"""The owner of a run; idempotency keys belong to their owner."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        owner = sa.Column("owner", sa.String(40), nullable=False, server_default="")
        table.add_column(owner)
        table.drop_index("user_runs_idempotency_key")
        table.create_index("user_runs_idempotency_key", ["owner", "idempotency_key"], unique=True)
        table.create_index("user_runs_newest_of_owner", ["owner", "created_at", "run_id"])


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_index("user_runs_newest_of_owner")
        table.drop_index("user_runs_idempotency_key")
        table.create_index("user_runs_idempotency_key", ["idempotency_key"], unique=True)
        table.drop_column("owner")

"""The trace context of the request that submitted a run."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("user_runs", sa.Column("traceparent", sa.String(55), nullable=True))
    op.add_column("user_runs", sa.Column("tracestate", sa.String(512), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_column("tracestate")
        table.drop_column("traceparent")

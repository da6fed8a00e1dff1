"""The calls of runs to models and tools."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "run_calls",
        sa.Column("run_id", sa.Uuid(), primary_key=True),
        sa.Column("attempt", sa.Integer(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("calls", sa.LargeBinary(), nullable=False),
        sa.Column("contents", sa.LargeBinary(), nullable=True),
        sa.Column("content_bytes", sa.Integer(), nullable=False, server_default="0"),
    )


def downgrade() -> None:
    op.drop_table("run_calls")

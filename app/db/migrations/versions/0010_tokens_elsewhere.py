"""Model tokens in transit, from the process that executes a run to its subscribers elsewhere."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "token_watches",
        sa.Column("run_id", sa.Uuid(), primary_key=True),
        sa.Column("watcher", sa.String(64), primary_key=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "passed_tokens",
        sa.Column("watcher", sa.String(64), primary_key=True),
        sa.Column("run_id", sa.Uuid(), primary_key=True),
        sa.Column("after_seq", sa.BigInteger(), primary_key=True),
        sa.Column("number", sa.BigInteger(), primary_key=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("passed_tokens")
    op.drop_table("token_watches")

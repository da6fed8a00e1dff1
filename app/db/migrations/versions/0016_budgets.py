"""Budgets of runs and keys, the cost of callers' days, reservations, and totals of usage."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

_OF_KEYS = ("cost_per_day", "max_cost", "max_model_calls", "max_tokens")


def upgrade() -> None:
    op.add_column("user_runs", sa.Column("budget", sa.JSON(), nullable=True))
    op.add_column(
        "caller_usage", sa.Column("cost", sa.BigInteger(), server_default="0", nullable=False)
    )
    for name in _OF_KEYS:
        op.add_column("api_keys", sa.Column(name, sa.BigInteger(), nullable=True))
    op.create_table(
        "cost_reservations",
        sa.Column("caller", sa.String(64), primary_key=True),
        sa.Column("worker", sa.String(64), primary_key=True),
        sa.Column("amount", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "usage_totals",
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("owner", sa.String(40), primary_key=True),
        sa.Column("crew", sa.String(100), primary_key=True),
        sa.Column("model", sa.String(200), primary_key=True),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("unpriced_calls", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("usage_totals")
    op.drop_table("cost_reservations")
    with op.batch_alter_table("api_keys") as table:
        for name in _OF_KEYS:
            table.drop_column(name)
    with op.batch_alter_table("caller_usage") as table:
        table.drop_column("cost")
    with op.batch_alter_table("user_runs") as table:
        table.drop_column("budget")

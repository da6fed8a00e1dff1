"""The use of each caller, and the limits of each key."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_IN_FLIGHT = "status IN ('queued', 'running')"


def upgrade() -> None:
    op.create_table(
        "caller_usage",
        sa.Column("caller", sa.String(64), primary_key=True),
        sa.Column("day", sa.Date(), primary_key=True),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "rate_counts",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.add_column("api_keys", sa.Column("runs_per_day", sa.BigInteger(), nullable=True))
    op.add_column("api_keys", sa.Column("tokens_per_day", sa.BigInteger(), nullable=True))
    op.add_column("user_runs", sa.Column("address", sa.String(64), nullable=True))
    for column, known in (("owner", "owner != ''"), ("address", "address IS NOT NULL")):
        which = sa.text(f"{known} AND {_IN_FLIGHT}")
        op.create_index(
            f"user_runs_in_flight_of_{column}",
            "user_runs",
            [column],
            sqlite_where=which,
            postgresql_where=which,
        )


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_index("user_runs_in_flight_of_address")
        table.drop_index("user_runs_in_flight_of_owner")
        table.drop_column("address")
    with op.batch_alter_table("api_keys") as table:
        table.drop_column("tokens_per_day")
        table.drop_column("runs_per_day")
    op.drop_table("rate_counts")
    op.drop_table("caller_usage")

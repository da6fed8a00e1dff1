"""The end user of a run, by the client's own id, and the run's secrets."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

_OF_AN_END_USER = sa.text("end_user != ''")
_IN_FLIGHT = sa.text("end_user != '' AND status IN ('queued', 'running')")


def upgrade() -> None:
    op.add_column(
        "user_runs", sa.Column("end_user", sa.String(200), server_default="", nullable=False)
    )
    op.add_column("user_runs", sa.Column("secrets", sa.LargeBinary(), nullable=True))
    op.create_index(
        "user_runs_newest_of_end_user",
        "user_runs",
        ["owner", "end_user", "created_at", "run_id"],
        sqlite_where=_OF_AN_END_USER,
        postgresql_where=_OF_AN_END_USER,
    )
    op.create_index(
        "user_runs_in_flight_of_end_user",
        "user_runs",
        ["end_user"],
        sqlite_where=_IN_FLIGHT,
        postgresql_where=_IN_FLIGHT,
    )


def downgrade() -> None:
    op.drop_index("user_runs_in_flight_of_end_user", "user_runs")
    op.drop_index("user_runs_newest_of_end_user", "user_runs")
    with op.batch_alter_table("user_runs") as table:
        table.drop_column("secrets")
        table.drop_column("end_user")

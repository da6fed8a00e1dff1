"""Schedules, and the schedule of a run."""

import sqlalchemy as sa
from alembic import op

revision = "0024"
down_revision = "0023"

_OF_A_SCHEDULE = sa.text("schedule_id IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("schedule_id", sa.Uuid(), primary_key=True),
        sa.Column("owner", sa.String(40), server_default="", nullable=False),
        sa.Column("end_user", sa.String(200), server_default="", nullable=False),
        sa.Column("address", sa.String(64), nullable=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("crew", sa.String(100), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("cron", sa.String(100), nullable=False),
        sa.Column("time_zone", sa.String(64), nullable=False),
        sa.Column("misfire", sa.String(20), nullable=False),
        sa.Column("overlap", sa.String(20), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("run_metadata", sa.JSON(), nullable=True),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("waits", sa.Boolean(), nullable=False),
        sa.Column("next_due", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_due", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("schedules_due", "schedules", ["next_due"])
    op.create_index("schedules_of_owner", "schedules", ["owner", "schedule_id"])
    op.add_column("user_runs", sa.Column("schedule_id", sa.Uuid(), nullable=True))
    op.add_column("user_runs", sa.Column("due_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "user_runs_of_schedule",
        "user_runs",
        ["schedule_id", "due_at"],
        unique=True,
        sqlite_where=_OF_A_SCHEDULE,
        postgresql_where=_OF_A_SCHEDULE,
    )


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_index("user_runs_of_schedule")
        table.drop_column("due_at")
        table.drop_column("schedule_id")
    op.drop_table("schedules")

"""The index of runs that wait for their time is dropped: no query used it.

These runs have a lease until then, and are found by the index of leases.
"""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"

_WAITS_FOR_ITS_TIME = sa.text("not_before IS NOT NULL AND status = 'queued'")


def upgrade() -> None:
    op.drop_index("user_runs_not_before", "user_runs")


def downgrade() -> None:
    op.create_index(
        "user_runs_not_before",
        "user_runs",
        ["not_before"],
        sqlite_where=_WAITS_FOR_ITS_TIME,
        postgresql_where=_WAITS_FOR_ITS_TIME,
    )

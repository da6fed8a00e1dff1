"""The slots of crews whose runs in flight are limited, over all processes."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    op.create_table(
        "crew_slots",
        sa.Column("run_id", sa.Uuid(), primary_key=True),
        sa.Column("crew", sa.String(100), nullable=False),
        sa.Column("worker", sa.String(64), nullable=False),
        sa.Column("is_held", sa.Boolean(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_crew_slots_crew", "crew_slots", ["crew"])


def downgrade() -> None:
    op.drop_table("crew_slots")

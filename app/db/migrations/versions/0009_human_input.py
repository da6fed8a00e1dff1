"""The state of a run that waits for a human, and the number of its pauses."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.add_column(sa.Column("human_input", sa.JSON(), nullable=True))
        table.add_column(sa.Column("pauses", sa.Integer(), nullable=False, server_default="0"))


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_column("pauses")
        table.drop_column("human_input")

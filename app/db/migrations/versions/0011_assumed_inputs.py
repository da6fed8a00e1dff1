"""The inputs of a run that were not given and have their defaults."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("user_runs", sa.Column("assumed_inputs", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.drop_column("assumed_inputs")

"""The context id: a client's name for a group of runs."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("user_runs", sa.Column("context_id", sa.String(255), nullable=True))


def downgrade() -> None:
    op.drop_column("user_runs", "context_id")

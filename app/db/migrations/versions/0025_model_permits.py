"""The shared limits of models: when the next requests and tokens are free."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    op.create_table(
        "model_permits",
        sa.Column("model", sa.String(200), primary_key=True),
        sa.Column("account", sa.String(16), primary_key=True),
        sa.Column("requests_until", sa.Double(), nullable=False),
        sa.Column("tokens_until", sa.Double(), nullable=False),
        sa.Column("paused_until", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("model_permits")

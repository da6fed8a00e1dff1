"""Memories of crews, by the caller that they belong to."""

import sqlalchemy as sa
from alembic import op

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    op.create_table(
        "memories",
        sa.Column("owner", sa.String(40), primary_key=True),
        sa.Column("end_user", sa.String(200), primary_key=True),
        sa.Column("crew", sa.String(100), primary_key=True),
        sa.Column("memory_id", sa.String(100), primary_key=True),
        sa.Column("space", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("categories", sa.JSON(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("importance", sa.Double(), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("private", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_accessed", sa.DateTime(timezone=True), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=True),
    )
    op.create_index("memories_last_accessed", "memories", ["last_accessed"])


def downgrade() -> None:
    op.drop_table("memories")

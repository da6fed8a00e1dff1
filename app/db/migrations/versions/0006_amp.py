"""Several webhooks for a run, each with a role, and the data that they get beside events."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_RUNS = sa.table(
    "user_runs",
    sa.column("run_id", sa.Uuid()),
    sa.column("webhook_url", sa.Text()),
    sa.column("webhooks", sa.JSON(none_as_null=True)),
)
_DELIVERIES = (
    "run_id",
    "seq",
    "event",
    "host",
    "status",
    "attempts",
    "due_at",
    "last_result",
    "created_at",
    "attempted_at",
)


def upgrade() -> None:
    with op.batch_alter_table("user_runs") as table:
        table.add_column(sa.Column("webhooks", sa.JSON(), nullable=True))
        table.add_column(sa.Column("meta", sa.JSON(), nullable=True))
    connection = op.get_bind()
    webhooks_of_runs = sa.select(_RUNS.c.run_id, _RUNS.c.webhook_url).where(
        _RUNS.c.webhook_url.is_not(None)
    )
    for run_id, url in connection.execute(webhooks_of_runs).all():
        connection.execute(
            sa.update(_RUNS).where(_RUNS.c.run_id == run_id).values(webhooks={"run": {"url": url}})
        )
    with op.batch_alter_table("user_runs") as table:
        table.drop_column("webhook_url")
    _remake_deliveries("role", "'run'")


def downgrade() -> None:
    op.execute("DELETE FROM webhook_deliveries WHERE role <> 'run'")
    _remake_deliveries(None, None)
    with op.batch_alter_table("user_runs") as table:
        table.add_column(sa.Column("webhook_url", sa.Text(), nullable=True))
    connection = op.get_bind()
    webhooks_of_runs = sa.select(_RUNS.c.run_id, _RUNS.c.webhooks).where(
        _RUNS.c.webhooks.is_not(None)
    )
    for run_id, webhooks in connection.execute(webhooks_of_runs).all():
        url = webhooks.get("run", {}).get("url")
        connection.execute(sa.update(_RUNS).where(_RUNS.c.run_id == run_id).values(webhook_url=url))
    with op.batch_alter_table("user_runs") as table:
        table.drop_column("meta")
        table.drop_column("webhooks")


def _remake_deliveries(added: str | None, value: str | None) -> None:
    """Copy the table: SQLite can't change a primary key."""
    op.rename_table("webhook_deliveries", "webhook_deliveries_before")
    op.drop_index("webhook_deliveries_due", "webhook_deliveries_before")
    keys = ["run_id", "seq", *([added] if added else [])]
    op.create_table(
        "webhook_deliveries",
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        *([sa.Column(added, sa.String(10), nullable=False)] if added else []),
        sa.Column("event", sa.String(40), nullable=False),
        sa.Column("host", sa.String(300), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_result", sa.String(100), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attempted_at", sa.DateTime(timezone=True), nullable=True),
        # Named, for the old table still has the name that it would get.
        sa.PrimaryKeyConstraint(*keys, name=f"webhook_deliveries_by_{keys[-1]}"),
    )
    columns = ", ".join(_DELIVERIES)
    op.execute(
        f"INSERT INTO webhook_deliveries ({columns}{', role' if added else ''}) "  # noqa: S608
        f"SELECT {columns}{f', {value}' if added else ''} FROM webhook_deliveries_before"
    )
    op.drop_table("webhook_deliveries_before")
    op.create_index("webhook_deliveries_due", "webhook_deliveries", ["status", "due_at"])

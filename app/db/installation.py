"""The installation id: one random name for each database, kept in it.

Outputs stored in a location belong to the database that holds their runs. The id is stamped into
the location, so that two deployments can't sweep each other's outputs.
"""

from uuid import uuid4

from sqlalchemy import Integer, String, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from app.db.session import Base, Database


class Installation(Base):
    """A table of one row."""

    __tablename__ = "installation"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    installation_id: Mapped[str] = mapped_column(String(32))


async def installation_id(database: Database) -> str:
    """The id of this database, created by the first call.

    Raises:
        DatabaseUnavailable: the database can't be queried.
    """
    known = select(Installation.installation_id)
    async with database.write() as connection:
        if database.engine.dialect.name == "postgresql":
            await connection.exec_driver_sql("LOCK TABLE installation IN EXCLUSIVE MODE")
        if (found := await connection.scalar(known)) is not None:
            return found
        new = uuid4().hex
        await connection.execute(insert(Installation).values(id=1, installation_id=new))
        return new

"""A client that freezes itself within a transaction: `frozen_client URL MOMENT`.

It then holds locks on the rows of the table `numbers`. It prints `freezing` before, and the outcome
of the transaction after.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from app.db import Database, DatabaseUnavailable, session

_INSERT = "INSERT INTO numbers VALUES ($1)"


def _freeze() -> None:
    print("freezing", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)


async def _between_statements(driver: Any) -> None:
    _freeze()
    await driver.execute("SELECT 1")


async def _before_the_values(driver: Any) -> None:
    statement = await driver.prepare(_INSERT)
    _freeze()
    await statement.fetch(2)


async def _amid_the_values(driver: Any) -> None:
    def values() -> Iterator[tuple[int]]:
        for number in range(2, 5000):
            if number == 4000:  # the first 128 KiB are sent by then
                _freeze()
            yield (number,)

    await driver.executemany(_INSERT, values())


MOMENTS = {
    "between statements": _between_statements,
    "before the values": _before_the_values,
    "amid the values": _amid_the_values,
}


async def _main(url: str, moment: str) -> None:
    session._TRANSACTION_SECONDS = 1
    database = Database(url)
    try:
        async with database.write() as connection:
            await connection.execute(text("SELECT n FROM numbers FOR UPDATE"))
            pooled = await connection.get_raw_connection()
            await MOMENTS[moment](pooled.driver_connection)
    except DatabaseUnavailable:
        print("unavailable")
    else:
        print("committed")
    await database.aclose()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))

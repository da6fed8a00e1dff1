"""The script of a thousand users, with fewer; `make bench` has the thousand."""

import asyncio
import sys
from pathlib import Path

from tests.serving import Serve


async def test_all_users_succeed(serve: Serve) -> None:
    async with serve() as service:
        users = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.load.thousand_users",
            str(service.http.base_url).rstrip("/"),
            "200",
            cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await users.communicate()
        assert users.returncode == 0, output.decode()
        assert b"200 of 200 succeeded" in output
        assert len(await service.rows()) == 200
        assert await service.stored() == 0

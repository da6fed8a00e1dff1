"""Two deployments, one location: the second does not start, and says what to do."""

import asyncio
from pathlib import Path

from tests.commands import RunCommand
from tests.serving import Serve


async def test_the_second_deployment_in_one_directory_refuses_to_start(
    serve: Serve, tmp_path: Path, crew_capture: RunCommand
) -> None:
    async with serve() as service:
        second = {"TEMP_DIR": str(tmp_path), "DATABASE_URL": f"sqlite:///{tmp_path}/second.db"}
        result = await asyncio.to_thread(crew_capture, "serve", "--port", "0", **second)
        assert result.returncode != 0
        assert "belongs to another installation" in result.stderr
        assert "TEMP_TAKE_OVER=yes" in result.stderr
        assert "Traceback" not in result.stderr
        assert (await service.http.get("/health/ready")).status_code == 200


def test_sweeping_by_hand_leaves_anothers_location_alone(
    tmp_path: Path, crew_capture: RunCommand
) -> None:
    first = {"TEMP_DIR": str(tmp_path), "DATABASE_URL": f"sqlite:///{tmp_path}/first.db"}
    assert crew_capture("sweep", **first).returncode == 0
    second = first | {"DATABASE_URL": f"sqlite:///{tmp_path}/second.db"}
    result = crew_capture("sweep", "--max-age-hours", "0", **second)
    assert result.returncode == 1
    assert "belongs to another installation" in result.stderr
    assert "Traceback" not in result.stderr

"""Many users at once, over every backend: each gets their own three reports, nothing stays."""

import asyncio
from collections import Counter
from typing import Any
from uuid import uuid4

import boto3
import pytest

from tests.servers import S3Account
from tests.serving import Serve

USERS = 100


@pytest.fixture
def s3(moto_s3: S3Account, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of both S3 drivers for an empty bucket of a simulated server."""
    for name, value in moto_s3.environment().items():
        monkeypatch.setenv(name, value)
    bucket = f"test-{uuid4().hex}"
    boto3.client("s3", endpoint_url=moto_s3.endpoint_url).create_bucket(Bucket=bucket)
    return {
        "s3_bucket": bucket,
        "s3_endpoint_url": moto_s3.endpoint_url,
        "obstore_url": f"s3://{bucket}",
        "obstore_endpoint_url": moto_s3.endpoint_url,
    }


@pytest.mark.parametrize("backend", ["local", "memory", "s3", "obstore", "memory+s3", "s3+local"])
async def test_a_hundred_users_at_once(serve: Serve, s3: dict[str, Any], backend: str) -> None:
    async with serve(temp_backend=backend, **s3) as service:
        responses = await asyncio.gather(
            *(
                service.http.post("/api/run", json={"experience_summary": f"user {user}"})
                for user in range(USERS)
            )
        )
        assert Counter(response.status_code for response in responses) == {200: USERS}
        for user, response in enumerate(responses):
            assert response.json()["inputs"]["experience_summary"] == f"user {user}"
        rows = await service.rows()
        assert len(rows) == USERS
        for row in rows:
            assert row.status == "succeeded"
            assert row.outputs is not None
            assert len(set(row.outputs.values())) == 3
            assert all(text.strip() for text in row.outputs.values())
        assert await service.stored() == 0

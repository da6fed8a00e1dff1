"""Every command and every Python program of the documents runs as it is written."""

from contextlib import suppress
from pathlib import Path

import pytest

from tests.commands import ForkServer
from tests.docs.page import ROOT, Block, PageShell, blocks
from tests.servers import S3Account

# The commands of docs/upgrade.md run on both databases in tests/cli/test_backup.py.
PAGES = [
    page
    for page in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if page.name != "upgrade.md"
]
# What a page has that can't run here, with a text of its block and the reason.
NOT_RUN = {
    "make setup": "this process runs in what it has made",
    "make test\n": "it is this",
    "make bench": "it lasts half an hour; tests/load runs its parts",
    "tests.load.bench": "the same",
    "tests.faults.suite": "it lasts half an hour; tests/faults runs its cases",
    "runs cancel": "the page's run has ended; tests/cli/test_commands.py has one that has not",
    "runs retry": "the page's run has succeeded; tests/cli/test_commands.py has one that has not",
    "crew-capture top": "it needs a service; tests/cli/test_top.py has one",
    "mount -t tmpfs": "it needs an administrator",
    "docker run": "it needs the image; tests/deploy/image.py makes and runs it",
    "arize-phoenix": "it installs hundreds of megabytes; tests/telemetry has a receiver of its own",
    "helm install": "it needs a cluster; tests/deploy/test_helm.py renders the chart",
    "Engine(model=model": "part of a program; tests/engine has many",
    "new_text_part(": "part of a program; tests/integration/test_real_clients.py has it whole",
    'session.call_tool("letter"': "part of a program; tests/api/test_mcp.py has it whole",
    "/resume": "it needs a run that waits; tests/examples/test_examples.py has one",
}
BUCKET = "crews-of-the-documents"


@pytest.fixture
def environment(seaweedfs: S3Account) -> dict[str, str]:
    """The settings that no page names, as it runs on servers of the tests."""
    client = seaweedfs.client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket=BUCKET)
    return {
        **seaweedfs.environment(),
        "S3_ENDPOINT_URL": seaweedfs.endpoint_url,
        "S3_REGION": seaweedfs.region,
        "WEBHOOK_ALLOW_PRIVATE": "yes",
    }


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem
)
def test_a_page_s_commands_run_in_their_order(
    page: Path,
    fork_server: ForkServer,
    tmp_path: Path,
    environment: dict[str, str],
    migrated_postgresql_url: str,
) -> None:
    names = {
        "postgresql://user:password@host/crews": migrated_postgresql_url,
        "my-bucket": BUCKET,
        "https://example.com/hooks/crews": "http://127.0.0.1:8000/hooks",  # no other machine
    }
    with PageShell(tmp_path, fork_server, environment, names) as shell:
        for block in blocks(page):
            if block.language in ("sh", "python") and _is_run(block):
                shell.run(block)


def test_what_is_not_run_is_still_in_the_documents() -> None:
    texts = [block.text for page in PAGES for block in blocks(page)]
    assert [text for text in NOT_RUN if not any(text in block for block in texts)] == []


def _is_run(block: Block) -> bool:
    return not any(text in block.text for text in NOT_RUN)

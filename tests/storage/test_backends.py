"""From settings to a store."""

import subprocess
import sys
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest

from storage import OutputKey, StorageSettings, create_store
from storage.stamp import STAMP_NAME


@pytest.mark.parametrize("backend", ["", "disk", "local+", "memory+disk", "local+local", "LOCAL"])
def test_an_unknown_backend_is_refused_with_what_is_allowed(backend: str) -> None:
    with pytest.raises(
        ValueError, match=r"allowed are local, memory, s3, obstore, and chains"
    ) as refusal:
        create_store(StorageSettings(backend=backend))
    assert repr(backend) in str(refusal.value)


def test_local_outputs_have_a_folder_of_their_own(tmp_path: Path) -> None:
    store = create_store(StorageSettings(directory=tmp_path))
    assert store.location == f"{tmp_path}/idea_crew_outputs"


def test_without_a_directory_each_installation_has_a_folder() -> None:
    parent = tempfile.gettempdir()
    for installation in ("one", "two"):
        store = create_store(StorageSettings(installation_id=installation))
        assert store.location == f"{parent}/idea_crew_outputs_{installation}"


async def test_the_folder_of_an_installation_ends_with_its_last_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes share it; the first that ends leaves it usable for the other."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one, other = (create_store(StorageSettings(installation_id="ours")) for _ in range(2))
    folder = tmp_path / "idea_crew_outputs_ours"
    await one.start("ours")
    await other.start("ours")
    assert (folder / STAMP_NAME).exists()
    await one.aclose()
    assert not folder.exists()
    key = OutputKey(uuid4(), 1, "plan")
    await other.persist(key, "text")
    assert await other.read(key) == "text"
    await other.aclose()
    assert [file.suffix for file in folder.iterdir()] == [".md"]


async def test_a_folder_that_the_settings_name_stays(tmp_path: Path) -> None:
    store = create_store(StorageSettings(directory=tmp_path))
    await store.start("ours")
    await store.aclose()
    assert (tmp_path / "idea_crew_outputs" / STAMP_NAME).exists()


@pytest.mark.parametrize(
    ("prefix", "location"),
    [("crew-capture/", "s3://b/crew-capture/"), ("/a/b", "s3://b/a/b/"), ("", "s3://b/")],
)
def test_s3_outputs_lie_under_their_prefix(prefix: str, location: str) -> None:
    settings = StorageSettings(backend="s3", s3_bucket="b", s3_prefix=prefix)
    assert create_store(settings).location == location


def test_a_chain_names_its_members_in_order(tmp_path: Path) -> None:
    settings = StorageSettings(backend="memory + s3+local", s3_bucket="b", directory=tmp_path)
    assert create_store(settings).location == (
        f"memory + s3://b/crew-capture/ + {tmp_path}/idea_crew_outputs"
    )


def test_s3_needs_a_bucket() -> None:
    with pytest.raises(ValueError, match="bucket"):
        create_store(StorageSettings(backend="memory+s3"))


@pytest.mark.parametrize("url", ["s3.example.org", "ftp://s3.example.org", "http://me:secret@s3"])
def test_a_wrong_endpoint_is_refused_without_showing_it(url: str) -> None:
    for backend in ("s3", "obstore"):
        settings = StorageSettings(
            backend=backend,
            s3_bucket="b",
            s3_endpoint_url=url,
            obstore_url="s3://b/",
            obstore_endpoint_url=url,
        )
        with pytest.raises(ValueError, match=f"{backend.upper()}_ENDPOINT_URL must be") as refusal:
            create_store(settings)
        assert "secret" not in str(refusal.value)


def test_obstore_needs_a_url() -> None:
    with pytest.raises(ValueError, match="s3://BUCKET/PREFIX"):
        create_store(StorageSettings(backend="memory+obstore"))


def test_those_who_do_not_use_s3_do_not_import_its_clients() -> None:
    code = (
        "import sys; from storage import StorageSettings, create_store;"
        "create_store(StorageSettings(backend='memory+local'));"
        "sys.exit(bool({'boto3', 'obstore'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

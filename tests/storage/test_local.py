"""Faults that only a directory of files can have."""
# ruff: noqa: ASYNC240 - a few small files, and nothing else runs beside a test

import asyncio
import errno
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from storage import LocationUnusable, OutputNotFound, OutputStore, OutputUnavailable
from storage.drivers.local import LocalDriver
from tests.storage.sites import INSTALLATION, key


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
async def store(directory: Path) -> AsyncIterator[OutputStore]:
    store = OutputStore(LocalDriver(directory), read_backoff_seconds=0.001)
    await store.start(INSTALLATION)
    yield store
    await store.aclose()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_directory_and_files_are_their_owners_alone(
    store: OutputStore, directory: Path
) -> None:
    await store.persist(key(), "text")
    assert mode_of(directory) == 0o700
    assert mode_of(directory / str(key())) == 0o600


async def test_a_file_is_named_by_run_time_and_filename(
    store: OutputStore, directory: Path
) -> None:
    await store.persist(key(), "text")
    path = directory / f"{key().run_id.hex}_1734567890_output_0.md"
    assert path.read_text() == "text"


async def test_nothing_but_outputs_and_the_stamp_is_in_the_directory(
    store: OutputStore, directory: Path
) -> None:
    await store.persist(key(), "text")
    assert {path.name for path in directory.iterdir()} == {
        str(key()),
        ".crew-capture-installation",
    }


async def test_a_symbolic_link_is_never_followed(
    store: OutputStore, directory: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    link = directory / str(key())
    link.symlink_to(secret)
    with pytest.raises(OutputNotFound):
        await store.read(key())
    assert (await store.usage()).count == 0
    await store.persist(key(), "text")  # replaces the link
    assert not link.is_symlink()
    other = directory / str(key(1))
    other.symlink_to(secret)
    await store.delete([key(1)])
    assert not other.is_symlink()
    assert secret.read_text() == "secret"


async def test_a_pipe_in_the_directory_is_not_waited_for(
    store: OutputStore, directory: Path
) -> None:
    os.mkfifo(directory / str(key()))
    with pytest.raises(OutputNotFound):
        await store.read(key())
    assert (await store.usage()).count == 0


async def test_a_folder_with_the_name_of_an_output_is_one_failure(
    store: OutputStore, directory: Path
) -> None:
    (directory / str(key(0))).mkdir()
    await store.persist(key(1), "text")
    report = await store.delete([key(0), key(1)])
    assert list(report.failed) == [key(0)]
    assert not (directory / str(key(1))).exists()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o707, 0o701])
async def test_a_directory_open_to_others_is_refused(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(LocationUnusable, match=rf"{directory}.*open to others.*chmod 700"):
        await OutputStore(LocalDriver(directory)).start(INSTALLATION)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
async def test_a_directory_of_someone_else_is_refused(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, 12345)
    with pytest.raises(LocationUnusable, match="owned by user 12345"):
        await OutputStore(LocalDriver(directory)).start(INSTALLATION)


async def test_a_link_instead_of_the_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LocationUnusable, match=str(directory)):
        await OutputStore(LocalDriver(directory)).start(INSTALLATION)


async def test_a_missing_folder_around_the_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        LocationUnusable, match=r"missing/outputs.*missing does not exist: make it.*TEMP_DIR"
    ):
        await OutputStore(LocalDriver(tmp_path / "missing" / "outputs")).start(INSTALLATION)


async def test_age_is_measured_by_the_clock_of_the_file_system(
    store: OutputStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        await store.persist(key(number), "text")
    two_hours_ago = time.time() - 7200
    os.utime(directory / str(key(1)), (two_hours_ago, two_hours_ago))
    a_day = 86400
    monkeypatch.setattr(time, "time", lambda: a_day)  # this machine's clock is far off
    assert (await store.sweep(3600)).removed == 1
    assert await store.read(key(2)) == "text"
    usage = await store.usage()
    assert usage.oldest_age_seconds is not None
    assert -1 < usage.oldest_age_seconds < 60


async def test_a_sweep_removes_what_dead_writers_left_once_it_is_old(
    store: OutputStore, directory: Path
) -> None:
    old, fresh, foreign = (
        directory / name
        for name in (".0123456789abcdef-1.tmp", ".0123456789abcdef-2.tmp", ".somebody-elses.tmp")
    )
    two_hours_ago = time.time() - 7200
    for path in (old, fresh, foreign):
        path.write_text("half of a te")
    for path in (old, foreign):
        os.utime(path, (two_hours_ago, two_hours_ago))
    report = await store.sweep(3600)
    assert (report.removed, report.removed_bytes) == (1, 12)
    assert not old.exists()
    assert fresh.exists()
    assert (await store.sweep(0)).removed == 1
    assert not fresh.exists()
    assert foreign.exists()


async def test_a_write_survives_the_sweep_of_its_unfinished_file(
    store: OutputStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename
    swept: list[object] = []

    def sweep_first(source: str, target: str, **how: int) -> None:
        if not swept:
            swept.append(source)
            os.unlink(source, dir_fd=how["src_dir_fd"])
        rename(source, target, **how)

    monkeypatch.setattr(os, "rename", sweep_first)
    await store.persist(key(), "text")
    assert swept
    assert await store.read(key()) == "text"


async def test_a_removed_directory_is_made_again(store: OutputStore, directory: Path) -> None:
    await store.persist(key(0), "lost")
    shutil.rmtree(directory)
    with pytest.raises(OutputNotFound):
        await store.read(key(0))
    await store.persist(key(1), "text")
    assert mode_of(directory) == 0o700
    assert await store.read(key(1)) == "text"
    assert await store.verify_owner()
    assert (directory / ".crew-capture-installation").exists()


async def test_a_directory_that_another_process_made_again_is_used(
    store: OutputStore, directory: Path
) -> None:
    shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    (directory / str(key())).write_text("from the other process")
    assert (await store.usage()).count == 1
    assert await store.read(key()) == "from the other process"


async def test_deletes_reach_a_directory_that_another_process_made_again(
    store: OutputStore, directory: Path
) -> None:
    shutil.rmtree(directory)
    directory.mkdir(mode=0o700)
    (directory / str(key())).write_text("from the other process")
    assert (await store.delete([key()])).complete
    assert list(directory.iterdir()) == []


async def test_a_removed_folder_around_the_directory_is_one_clear_error(
    store: OutputStore, directory: Path
) -> None:
    shutil.rmtree(directory)
    directory.parent.rmdir()
    with pytest.raises(OutputUnavailable, match=rf"{key()}.*No such file or directory"):
        await store.persist(key(), "text")
    directory.parent.mkdir()
    await store.persist(key(), "text")
    assert await store.read(key()) == "text"


async def test_closing_releases_every_file(directory: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        store = OutputStore(LocalDriver(directory))
        await store.start(INSTALLATION)
        await store.persist(key(), "text")
        await store.read(key())
        await store.sweep(0)
        await store.aclose()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_directory_gone_from_its_file_server_is_opened_again(
    store: OutputStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open
    stale: list[object] = []

    def open_stale_once(path: str, *how: int, **where: int) -> int:
        if where and not stale:
            stale.append(path)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return opened(path, *how, **where)

    monkeypatch.setattr(os, "open", open_stale_once)
    await store.persist(key(), "text")
    assert stale
    assert await store.read(key()) == "text"


@pytest.mark.parametrize("rest", [b"", b"\0" * 40])
async def test_a_stamp_lost_in_a_power_cut_is_put_back(
    directory: Path, store: OutputStore, rest: bytes
) -> None:
    await store.aclose()
    (directory / ".crew-capture-installation").write_bytes(rest)
    async with OutputStore(LocalDriver(directory)) as again:
        await again.start(INSTALLATION)
    assert (directory / ".crew-capture-installation").read_text() == f"{INSTALLATION}\n"


async def test_listings_of_a_large_directory_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Each needs so long that several threads list at once."""
    driver = LocalDriver(tmp_path / "outputs")
    await driver.start()
    names = sorted(str(key(number)) for number in range(20_000))
    for name in names:
        (tmp_path / "outputs" / name).touch(mode=0o600)

    async def list_after(seconds: float) -> list[str]:
        await asyncio.sleep(seconds)
        return [entry.name for entry in (await driver.list()).entries]

    listings = await asyncio.gather(*(list_after(turn * 0.02) for turn in range(20)))
    assert all(listing == names for listing in listings)
    await driver.aclose()

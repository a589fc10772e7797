import contextlib
import errno
import hashlib
import os
import stat

import pytest
import torch
from safetensors.torch import load_file

from promptreid import files
from promptreid.files import (
    file_digest,
    locked,
    make_private_folder,
    read_sealed_json,
    remove_abandoned,
    remove_scratch,
    rename_over,
    write_bytes_atomically,
    write_json_atomically,
    write_sealed_json,
    write_tensors_atomically,
)


def test_write_bytes_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_bytes_atomically(path, b"old")
    write_bytes_atomically(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    if os.name == "posix":
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_null_for_what_it_has_no_number_for(tmp_path):
    content = {"mAP": 0.5, "spread": float("nan"), "ends": ({"low": -float("inf")}, 1), "name": "NaN"}
    expected = {"mAP": 0.5, "spread": None, "ends": [{"low": None}, 1], "name": "NaN"}
    write_sealed_json(tmp_path / "a.json", content)
    assert read_sealed_json(tmp_path / "a.json") == expected
    write_json_atomically(tmp_path / "b.json", content)
    for path in tmp_path.iterdir():
        assert "NaN" not in path.read_text(encoding="utf-8").replace('"NaN"', "")


@pytest.mark.posix
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path, umask, expected):
    before = os.umask(umask)
    try:
        write_bytes_atomically(tmp_path / "a.json", b"new")
        write_tensors_atomically(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {expected}


def test_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_bytes_atomically(path, b"old")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_explained(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left on the disk; free some and write again") as caught:
        write_bytes_atomically(tmp_path / "a.json", b"new")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_full_disk_that_safetensors_reports_is_explained(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(files, "save_file", fail)
    with pytest.raises(OSError, match="free some and write again"):
        write_tensors_atomically(tmp_path / "a.safetensors", {"a": torch.zeros(2)})


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_bytes_atomically(tmp_path / "no" / "a.json", b"")


def test_tensors_that_share_memory_are_written_each_by_itself(tmp_path):
    table = torch.randn(4, 6)
    tied = {"a": table, "b": table, "row": table[1], "column": table[:, 2], "turned": table.T, "none": table[:0]}
    write_tensors_atomically(tmp_path / "t.safetensors", tied)
    read = load_file(tmp_path / "t.safetensors")
    assert read.keys() == tied.keys()
    assert all(torch.equal(read[name], value) for name, value in tied.items())
    assert (tmp_path / "t.safetensors").stat().st_size < 4 * (3 * 24 + 6 + 4) + 600


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_keep_their_dtype(tmp_path, dtype):
    value = torch.arange(6).reshape(2, 3).to(dtype)
    write_tensors_atomically(tmp_path / "t.safetensors", {"a": value.requires_grad_(dtype.is_floating_point)})
    read = load_file(tmp_path / "t.safetensors")["a"]
    assert read.dtype == dtype
    assert torch.equal(read, value)


def test_digest_is_sha256_across_blocks(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert len(content) > files._BLOCK_BYTES
    assert file_digest(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_write_into_a_folder_that_is_not_there_names_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"cannot write .*nowhere.a\.json: there is no folder .*nowhere; make it"
    ):
        write_bytes_atomically(tmp_path / "nowhere" / "a.json", b"{}")


def test_scratch_files_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    for name in (".a.json-0123456789abcdef", ".a.json-mine", "a.json", ".b.json-0123456789abcdef"):
        (tmp_path / name).touch()
    remove_scratch(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {".a.json-mine", "a.json", ".b.json-0123456789abcdef"}


def test_locked_keeps_other_processes_out_and_says_what_they_do(fork, tmp_path):
    path = tmp_path / "a.lock"
    program = (
        "from pathlib import Path\nfrom promptreid.files import locked\n"
        f"with locked(Path({str(path)!r}), action='saving into a', timeout_seconds=0.1):\n    print('in')"
    )
    with locked(path, action="saving into a"):
        _, errors = fork(program).communicate()
    assert "another process has been saving into a for 0.1 s; wait for it or end it" in errors
    assert fork(program).communicate() == ("in\n", "")


@pytest.mark.posix
def test_lock_that_is_a_link_is_refused_and_what_it_leads_to_is_untouched(tmp_path):
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "a.lock").symlink_to(tmp_path / "mine")
    with (
        pytest.raises(OSError, match="a link or not a regular file; remove it"),
        locked(tmp_path / "a.lock", action="saving"),
    ):
        pass
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.posix
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_folder_that_cannot_be_flushed_gets_one_warning_and_the_new_file(tmp_path, monkeypatch, number):
    real = os.fsync

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(UserWarning, match=r"cannot be flushed to the disk .*; what was just written is there"):
        write_bytes_atomically(tmp_path / "a.json", b"new")
    write_bytes_atomically(tmp_path / "b.json", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"new", "b.json": b"new"}


def test_file_system_without_fsync_gets_one_warning(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(UserWarning, match="a power cut may lose it") as caught:
        write_bytes_atomically(tmp_path / "a.json", b"new")
    assert len(caught) == 1
    assert (tmp_path / "a.json").read_bytes() == b"new"


def test_failing_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    write_bytes_atomically(tmp_path / "a.json", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_bytes_atomically(tmp_path / "a.json", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("flock")])
def test_file_system_without_locks_gets_one_warning(tmp_path, monkeypatch, error):
    def refuse(_):
        raise error

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    lock = tmp_path / "a.lock"
    with pytest.warns(UserWarning, match="without locks; let one process at a time"), locked(lock, action="saving"):
        pass
    with locked(lock, action="saving"):  # a second warning would be an error
        pass


@pytest.mark.posix
def test_private_folder_has_no_parents_that_others_may_write(tmp_path):
    before = os.umask(0)
    try:
        make_private_folder(tmp_path / "a" / "b" / "c")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/c")]
    assert modes == [0o755, 0o755, 0o700]


def test_remove_abandoned_leaves_what_somebody_writes(tmp_path):
    mark = "-0123456789abcdef"
    for name in (f".held.uint8{mark}", f".free.uint8{mark}", f".old.json{mark}", f".new.json{mark}", ".old.json-0123"):
        (tmp_path / name).touch()
    for name in ("held.lock", "free.lock"):
        (tmp_path / name).touch()
    (tmp_path / f".folder{mark}").mkdir()  # we write files
    for name in (f".old.json{mark}", f".folder{mark}"):
        os.utime(tmp_path / name, (1, 1))
    os.utime(tmp_path / ".old.json-0123", (1, 1))  # not a name of ours
    with locked(tmp_path / "held.lock", action="writing"):
        remove_abandoned(tmp_path)
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == {f".held.uint8{mark}", f".new.json{mark}", ".old.json-0123", f".folder{mark}"}


@pytest.mark.posix
def test_remove_abandoned_removes_at_once_what_a_process_that_has_ended_wrote(fork, tmp_path):
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom promptreid.files import replaced\n"
        f"with replaced(Path({str(tmp_path)!r}) / sys.argv[1]) as scratch:\n"
        "    print(scratch.name, flush=True)\n    os.read(0, 1)\n    os._exit(9)"
    )
    writers = [fork(program, name) for name in ("dead.json", "alive.json")]
    dead, alive = (writer.stdout.readline().strip() for writer in writers)
    writers[0].communicate()
    with files.replaced(tmp_path / "own.json") as own:
        remove_abandoned(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {alive, own.name}
    writers[1].communicate()
    foreign = f".c.json-{int(files._MACHINE, 16) ^ 1:08x}{dead[-8:]}"  # of the same number on another machine
    (tmp_path / foreign).touch()
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {foreign, "own.json"}
    remove_abandoned(tmp_path, alone=True)
    assert [path.name for path in tmp_path.iterdir()] == ["own.json"]


@pytest.fixture
def on_windows(monkeypatch):
    """As much of Windows as can be had elsewhere: the branches taken there, and files that cannot be replaced."""
    monkeypatch.setattr(files, "_IS_WINDOWS", True)


def test_file_held_open_on_windows_is_replaced_once_it_is_let_go(tmp_path, on_windows, monkeypatch):
    path, refusals = tmp_path / "a.json", iter(range(3))
    replace = type(path).replace

    def held(scratch, target):
        if next(refusals, None) is not None:
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        return replace(scratch, target)

    monkeypatch.setattr(type(path), "replace", held)
    write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert next(refusals, None) is None


def test_folder_is_renamed_on_windows_once_a_file_in_it_is_let_go(tmp_path, on_windows, monkeypatch):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "a.json").touch()
    refusals, replace = iter(range(3)), type(tmp_path).replace

    def held(scratch, target):
        if next(refusals, None) is not None:
            raise PermissionError(errno.EACCES, "Access is denied", str(target))
        return replace(scratch, target)

    monkeypatch.setattr(type(tmp_path), "replace", held)
    rename_over(tmp_path / "unfinished", tmp_path / "step-1")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")] == ["step-1/a.json"]


def test_file_held_open_for_good_on_windows_is_an_error_and_left_alone(tmp_path, on_windows, monkeypatch):
    path = tmp_path / "a.json"
    write_bytes_atomically(path, b"old")

    def held(scratch, target):
        raise PermissionError(errno.EACCES, "Access is denied", str(target))

    monkeypatch.setattr(files, "_RENAME_SECONDS", 0.1)
    monkeypatch.setattr(type(path), "replace", held)
    with pytest.raises(PermissionError, match=r"open here or in another program; close that and write again.*a\.json"):
        write_bytes_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_refused_rename_elsewhere_fails_at_once(tmp_path, monkeypatch):
    calls = []

    def held(scratch, target):
        calls.append(target)
        raise PermissionError(errno.EPERM, "Operation not permitted", str(target))

    monkeypatch.setattr(type(tmp_path), "replace", held)
    with pytest.raises(PermissionError, match="Operation not permitted"):
        write_bytes_atomically(tmp_path / "a.json", b"new")
    assert len(calls) == 1


def test_folders_are_not_flushed_on_windows(tmp_path, on_windows, monkeypatch):
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("Windows cannot open a folder"))
    files.flush(tmp_path)


def test_paths_in_files_have_slashes_whatever_the_system(on_windows, monkeypatch):
    assert files.portable(r"C:\crops\a.jpg") == "C:/crops/a.jpg"
    monkeypatch.setattr(files, "_IS_WINDOWS", False)
    assert files.portable("odd\\name.jpg") == "odd\\name.jpg"  # a letter like any other on POSIX


def test_tensors_are_read_and_not_mapped_on_windows(tmp_path, on_windows, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_tensors_atomically(path, {"a": torch.arange(3)})
    monkeypatch.setattr(files, "load_file", lambda *_: pytest.fail("a mapped file cannot be replaced there"))
    assert files.read_tensors(path)["a"].tolist() == [0, 1, 2]


def test_sealed_json_notices_every_changed_byte_of_its_content(tmp_path):
    path, content = tmp_path / "a.json", {"scores": [0.5, None], "name": "für", "sizes": (1, 2)}
    write_sealed_json(path, content)
    read = {**content, "sizes": [1, 2]}
    assert read_sealed_json(path) == read
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        # What changes spaces alone, or the very name of the digest, changes no value.
        with contextlib.suppress(ValueError):
            found = read_sealed_json(path)
            assert found == read or len(found) == len(read) + 1


@pytest.mark.parametrize("content", ["[1]", "3", "[" * 100_000, '{"a": ', '{"a": 1, "digest": "0"}'])
def test_what_is_no_sealed_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"expected an object|too deep|delimiter|Expecting|digest"):
        read_sealed_json(tmp_path / "a.json")


def test_json_of_an_older_version_without_a_digest_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_sealed_json(tmp_path / "a.json") == {"a": 1}

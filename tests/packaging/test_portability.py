"""What the package may not do, because Windows or macOS cannot: found in the source, on any system."""

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from promptreid import Gallery, load_prompts, save_prompts

SOURCE = Path(__file__).parents[2] / "src" / "promptreid"

NOT_ON_WINDOWS = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
# Of `os` and `signal`; used only where the same function asks for the system, or whether there is such a name.
POSIX_NAMES = re.compile(
    r"\b(?:os\.(?:chown|fchmod|fork|getegid|geteuid|getgid|getpgid|getuid|killpg|mkfifo|nice|O_NOFOLLOW|O_NONBLOCK|"
    r"pread|sched_\w+|setsid|statvfs|sysconf|umask|uname|wait)|signal\.(?:SIGHUP|SIGKILL|SIGSTOP|SIGPIPE|alarm|pause))\b"
)
BRANCH = re.compile(r"os\.name|_IS_WINDOWS|hasattr\((?:os|signal)")


def functions(tree: ast.AST) -> Iterator[ast.AST]:
    """Every function; and what is outside of them, as one more."""
    inner = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    yield from inner
    nested = {id(child) for node in inner for child in ast.walk(node)}
    yield from (node for node in ast.iter_child_nodes(tree) if isinstance(node, ast.Assign) and id(node) not in nested)


def imported(tree: ast.AST) -> set[str]:
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def renames(tree: ast.AST) -> list[str]:
    """Calls that rename a file: `os.replace`, `os.rename`, `Path.rename`, `Path.replace`, which takes one argument."""
    return [
        ast.unparse(call)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and (
            (call.func.attr == "rename")
            or (call.func.attr == "replace" and (ast.unparse(call.func.value) == "os" or len(call.args) == 1))
        )
        and not call.keywords
    ]


def faults(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [f"imports {name}" for name in sorted(imported(tree) & NOT_ON_WINDOWS)]
    for part in functions(tree):
        text = ast.unparse(part)
        if (used := POSIX_NAMES.findall(text)) and not BRANCH.search(text):
            found.append(f"uses {', '.join(used)} on every system")
    # Windows refuses to for a moment whenever a virus scanner looks at the file: files.rename_over waits.
    return found + [f"renames by itself: {call}" for call in renames(tree) if path.name != "files.py"]


def test_no_module_does_what_only_linux_and_macos_can():
    found = {path.relative_to(SOURCE).as_posix(): faults(path) for path in sorted(SOURCE.rglob("*.py"))}
    assert found
    assert not {path: said for path, said in found.items() if said}


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import fcntl", "imports fcntl"),
        ("def f(): return os.getuid()", "uses os.getuid"),
        ("LATE = signal.SIGHUP", "uses signal.SIGHUP"),
        ("def f(a, b): os.replace(a, b)", "renames by itself: os.replace(a, b)"),
        ("def f(a, b): a.rename(b)", "renames by itself: a.rename(b)"),
        ("def f(a, b): a.replace(b)", "renames by itself: a.replace(b)"),
    ],
)
def test_what_is_searched_for_is_found(tmp_path, code, fault):
    (tmp_path / "module.py").write_text(code, encoding="utf-8")
    [found] = faults(tmp_path / "module.py")
    assert found.startswith(fault)


def test_names_that_windows_lacks_are_fine_behind_a_branch(tmp_path):
    code = 'def f(a): return os.getuid() if hasattr(os, "getuid") else a.replace("b", "c")'
    (tmp_path / "module.py").write_text(code, encoding="utf-8")
    assert not faults(tmp_path / "module.py")


def test_names_of_files_differ_by_more_than_case_and_none_is_reserved():
    # A checkout on macOS or Windows would lose one of two that differ in case, and Windows cannot make `aux.py`.
    reserved = {"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(1, 10))}
    root = SOURCE.parents[1]
    names = [
        path.relative_to(root).as_posix() for folder in ("src", "tests", "docs") for path in (root / folder).rglob("*")
    ]
    names = [name for name in names if "__pycache__" not in name and "/_build" not in name]
    assert len({name.lower() for name in names}) == len(names)
    assert not [name for name in names if {part.lower().partition(".")[0] for part in name.split("/")} & reserved]
    assert not [name for name in names if re.search(r'[<>:"\\|?*]|[. ]$', name)]
    assert max(map(len, names)) < 150  # with a folder of 100 letters before it, below Windows's 260


def held(folder: Path) -> set[str]:
    """Files below a folder that this process has mapped or open, which Windows would not let anybody replace."""
    names = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text("utf-8").splitlines()}
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            names.add(os.readlink(descriptor))
    return {name for name in names if name.startswith(f"{folder}/")}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_loaded_can_be_replaced_on_windows(tmp_path, monkeypatch):
    monkeypatch.setattr("promptreid.files._IS_WINDOWS", True)
    kept = Path(__file__).parents[1] / "hub" / "kept" / "0.1.0"
    for name in ("tuned", "gallery"):
        shutil.copytree(kept / name, tmp_path / name)
    model = load_prompts(tmp_path / "tuned", trust_base=True)
    gallery = Gallery.load(tmp_path / "gallery", model)
    assert gallery.search(gallery.features[2], k=1)
    assert not held(tmp_path)
    save_prompts(model, tmp_path / "tuned", overwrite=True)
    gallery.remove([0])
    gallery.save()
    assert not held(tmp_path)
    with (tmp_path / "tuned" / "prompts.safetensors").open("rb"):
        assert held(tmp_path) == {str(tmp_path / "tuned" / "prompts.safetensors")}

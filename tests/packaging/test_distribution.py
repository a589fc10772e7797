"""The wheel and the source distribution: what is in them, and that the main job runs from the wheel alone."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from promptreid.towers.tiny import TINY_WEIGHTS

ROOT = Path(__file__).parents[2]


def command(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    process = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert process.returncode == 0, process.stdout + process.stderr
    return process


def tracked(folder: str) -> set[str]:
    """Files of the repository; none in a source distribution, which is no git checkout."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    return set(listed.stdout.splitlines())


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built as `make build` builds them, but with the hatchling that is here, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("dist")
    command(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="session")
def empty_environment(distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that sees the dependencies of this one, and promptreid from the wheel alone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    here = sysconfig.get_paths()["purelib"]
    (purelib,) = (folder / "lib").glob("python*/site-packages")
    # Only promptreid's own folder matters: an editable install is a .pth file, and those are not read from here.
    (purelib / "dependencies.pth").write_text(here + "\n", encoding="utf-8")
    command(python, "-m", "pip", "install", "--no-index", "--no-deps", "--ignore-installed", distributions["wheel"])
    return python


@pytest.fixture
def bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


@pytest.mark.xdist_group("packaging")
class TestDistributions:
    def test_twine_finds_no_error(self, distributions):
        command(sys.executable, "-m", "twine", "check", "--strict", *distributions.values())

    def test_wheel_holds_every_module_the_base_and_the_types_and_nothing_else(self, distributions):
        with zipfile.ZipFile(distributions["wheel"]) as archive:
            names = {name for name in archive.namelist() if ".dist-info/" not in name}
        expected = {name.removeprefix("src/") for name in tracked("src/promptreid")}
        assert "promptreid/py.typed" in names
        assert {f"promptreid/towers/tiny/{name}" for name in TINY_WEIGHTS.values()} <= names
        assert not [name for name in names if not name.startswith("promptreid/") or "__pycache__" in name]
        assert expected <= names

    def test_sdist_holds_tests_docs_examples_and_papers_and_no_leftovers(self, distributions):
        with tarfile.open(distributions["sdist"]) as archive:
            names = [name.split("/", 1)[1] for name in archive.getnames()]
        for wanted in (
            "tests/conftest.py",
            "docs/index.md",
            "docs/conf.py",
            "examples/train_cuhk.py",
            "benchmarks/prompt_initialization.py",
            "tools/check_links.py",
            "CHANGELOG.md",
            "CITATION.cff",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "LICENSE",
            "Makefile",
        ):
            assert wanted in names
        assert not tracked(".") - set(names)  # the tests read nearly every one
        assert not [
            name for name in names if re.search(r"(^|/)_build/|__pycache__|\.venv|^runs/|^docs/(api|drawn)/", name)
        ]

    def test_metadata_names_licence_python_readme_and_every_extra(self, distributions):
        with zipfile.ZipFile(distributions["wheel"]) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(archive.read(name))
        assert metadata["License-Expression"] == "MIT"
        assert metadata["Requires-Python"] == ">=3.10"
        assert set(metadata.get_all("Project-URL")) >= {"Repository, https://github.com/promptreid/promptreid"}
        assert metadata["Description-Content-Type"] == "text/markdown"
        readme = metadata.get_payload()
        assert "promptreid" in readme
        assert not re.findall(r"\]\((?!https?://|mailto:|#)[^)]*\)", readme)  # an index has none of our files
        here = f"https://github.com/promptreid/promptreid/{{}}/v{metadata['Version']}/"
        assert f"]({here.format('raw')}docs/pictures/hero.png)" in readme
        assert f"[concepts]({here.format('blob')}docs/concepts.md)" in readme
        code = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
        assert code.findall(readme) == code.findall((ROOT / "README.md").read_text(encoding="utf-8"))
        assert set(metadata.get_all("Provides-Extra")) == {
            "train", "viz", "demo", "hf", "onnx", "parquet", "store", "completion", "export", "all"
        }  # fmt: skip
        core = {re.split(r"[<>=;\[ ]", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
        assert core == {
            "torch", "torchvision", "open-clip-torch", "timm", "safetensors", "huggingface-hub", "einops", "numpy",
            "pillow", "tqdm", "filelock",
        }  # fmt: skip

    def test_package_installed_from_the_wheel_imports_and_makes_the_shipped_base(
        self, empty_environment, bare_environment, tmp_path
    ):
        code = (
            "import promptreid; print(promptreid.__file__);"
            "promptreid.load_clip('promptreid-tiny', pretrained='generated_v3', image_size=(96, 48))"
        )
        output = command(empty_environment, "-c", code, cwd=tmp_path, env=bare_environment).stdout
        assert str(empty_environment.parents[1]) in output

    @pytest.mark.slow
    def test_main_job_runs_from_the_wheel(self, empty_environment, bare_environment, tmp_path):
        script = ROOT / "examples" / "train_cuhk.py"
        output = command(empty_environment, script, "--quick", cwd=tmp_path, env=bare_environment, timeout=280).stdout
        assert "saved and loaded again: the same scores" in output

"""The package works as a wheel, from its sdist, as an editable install, without a compiler, and from a checkout.

The environments are empty but for electra-fast; a .pth file lends them the libraries, so nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = (".*", "build", "dist", "runs", "*.egg-info", "__pycache__", "*.so", "*.pyd")
BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"
LOOK = """
import importlib.util, json, sys
import electra_fast
heavy = sorted({"torch", "triton", "transformers", "numpy"} & set(sys.modules))
from electra_fast.pretraining.config import recipe_names
from electra_fast.pretraining.config_file import read_config
layers = read_config("small").model.num_hidden_layers
import electra_fast.kernels
kernel = importlib.util.find_spec("electra_fast.kernels.masking_sampling")
from electra_fast.info import collect
row = next(row for row in collect().operators if (row.operator, row.device_type) == ("mask_tokens", "cpu"))
import electra_fast.demo
print(json.dumps({
    "heavy": heavy, "recipes": recipe_names(), "layers": layers, "file": electra_fast.__file__,
    "kernel": kernel.origin, "backend": row.default, "missing": row.missing, "demo": electra_fast.demo.__file__,
}))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the checkout."""
    return _copy(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    sdist = folder / _build("build_sdist", source, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return folder / _build("build_wheel", unpacked, folder)


def _copy(folder: Path) -> Path:
    return shutil.copytree(ROOT, folder / "electra-fast", ignore=shutil.ignore_patterns(*LEFT_BEHIND))


def _build(what: str, source: Path, folder: Path, **environment: str) -> str:
    command = [sys.executable, "-c", BUILD, what, str(folder)]
    result = subprocess.run(
        command, cwd=source, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1]


def _environment(folder: Path, wheel: Path | None = None) -> Path:
    """An environment with one wheel installed, or none; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if wheel is not None:
        install = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", str(wheel)]
        subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    query = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    purelib = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (purelib / "lent.pth").write_text("\n".join(lent))
    return python


def _look(python: Path | str, cwd: Path) -> dict:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ELECTRA_FAST_BACKEND")
    }
    result = subprocess.run(
        [str(python), "-c", LOOK], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["heavy"] == []
    assert seen["recipes"] == ["base", "continue", "large", "small", "small++", "tiny", "two-stage"]
    assert seen["layers"] == 12
    return seen


def test_wheel_from_the_sdist_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    python = _environment(tmp_path / "env", wheel)
    seen = _look(python, tmp_path)
    for file in (seen["file"], seen["kernel"], seen["demo"]):
        assert Path(file).is_relative_to(tmp_path / "env")
    assert Path(seen["kernel"]).parent.name == "kernels"
    assert seen["backend"] == "cpp"
    command = python.with_name("electra-fast.exe" if os.name == "nt" else "electra-fast")
    shown = subprocess.run(
        [str(command), "demo", "--help"], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert shown.startswith("usage: electra-fast demo")
    # A top-level module of this name would clash with the package that transformers imports.
    assert not (Path(seen["file"]).parents[1] / "kernels").exists()


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {name for name in names if ".dist-info/" not in name}
    assert all(name.startswith("electra_fast/") for name in package)
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "electra_fast").rglob("*.py")}
    expected |= {f"electra_fast/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels").glob("*.py")}
    expected |= {f"electra_fast/recipes/{path.name}" for path in (ROOT / "electra_fast" / "recipes").glob("*.yaml")}
    expected |= {"electra_fast/py.typed"}
    compiled = {name for name in package if name.startswith("electra_fast/_C.") and not name.endswith(".pyi")}
    assert package - compiled - {"electra_fast/_C.pyi"} == expected
    assert len(compiled) == 1


def test_editable_install_works(tmp_path: Path) -> None:
    copy = _copy(tmp_path)
    wheel = tmp_path / _build("build_editable", copy, tmp_path)
    seen = _look(_environment(tmp_path / "env", wheel), tmp_path)
    assert Path(seen["file"]) == copy / "electra_fast" / "__init__.py"
    assert Path(seen["kernel"]) == copy / "kernels" / "masking_sampling.py"
    assert seen["backend"] == "cpp"


@pytest.mark.skipif(os.name == "nt", reason="MSVC is found without CC and CXX")
def test_without_a_compiler_the_install_succeeds_and_says_what_is_missing(tmp_path: Path) -> None:
    copy = _copy(tmp_path)
    wheel = tmp_path / _build("build_wheel", copy, tmp_path, CC="false", CXX="false")
    seen = _look(_environment(tmp_path / "env", wheel), tmp_path)
    assert seen["backend"] == "reference"
    assert "C++ compiler" in seen["missing"]["cpp"]


def test_a_checkout_runs_where_it_lies(tmp_path: Path) -> None:
    source = _copy(tmp_path)
    # In an environment of its own: an editable install would lend its compiled extension to any checkout.
    seen = _look(_environment(tmp_path / "env"), source)
    assert Path(seen["file"]) == source / "electra_fast" / "__init__.py"
    assert Path(seen["kernel"]) == source / "kernels" / "masking_sampling.py"
    assert seen["backend"] == "reference"

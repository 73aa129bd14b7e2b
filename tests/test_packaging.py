"""The package works as a wheel, from its sdist, as an editable install, without a compiler, and from a checkout.

The environments are empty but for electra-fast; a .pth file lends them the libraries, so nothing is downloaded. What
takes minutes runs with ELECTRA_FAST_TEST_ALL=1, which also compiles as for a release, else without optimising; what
needs a tool of the extra `release` is skipped without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

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


needs_all = pytest.mark.skipif(
    not os.environ.get("ELECTRA_FAST_TEST_ALL"), reason="takes minutes; set ELECTRA_FAST_TEST_ALL=1"
)


def needs(tool: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(tool) is None
    return pytest.mark.skipif(missing, reason=f"needs {tool}: pip install 'electra-fast[release]'")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean copy of the checkout."""
    return _copy(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which several builds of the same sources compile them once."""
    if os.name == "nt":  # MSVC is found without CC and CXX
        return {}
    wrapper = [
        sys.executable,
        str(ROOT / "tests" / "scripts" / "compile_once.py"),
        str(tmp_path_factory.mktemp("once")),
    ]
    names = ("CC", "CXX")
    quick = {} if os.environ.get("ELECTRA_FAST_TEST_ALL") else {"COMPILE_ONCE_QUICK": "1"}
    return quick | {
        name: f"{shlex.join(wrapper)} {os.environ.get(name) or sysconfig.get_config_var(name)}" for name in names
    }


@pytest.fixture(scope="module")
def wheel(source: Path, once: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    sdist = folder / _build("build_sdist", source, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return folder / _build("build_wheel", unpacked, folder, **once)


@pytest.fixture(scope="module")
def sdist(wheel: Path) -> Path:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    return sdist


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
    expected |= {"electra_fast/py.typed", "electra_fast/estimation/measured.json"}
    compiled = {name for name in package if name.startswith("electra_fast/_C.") and not name.endswith(".pyi")}
    assert package - compiled - {"electra_fast/_C.pyi"} == expected
    assert len(compiled) == 1


def test_editable_install_works(once: dict[str, str], tmp_path: Path) -> None:
    copy = _copy(tmp_path)
    wheel = tmp_path / _build("build_editable", copy, tmp_path, **once)
    seen = _look(_environment(tmp_path / "env", wheel), tmp_path)
    assert Path(seen["file"]) == copy / "electra_fast" / "__init__.py"
    assert Path(seen["kernel"]) == copy / "kernels" / "masking_sampling.py"
    assert seen["backend"] == "cpp"


@pytest.mark.skipif(os.name == "nt", reason="MSVC is found without CC and CXX")
def test_without_a_compiler_the_install_succeeds_and_says_what_is_missing(tmp_path: Path) -> None:
    copy = _copy(tmp_path)
    wheel = tmp_path / _build("build_wheel", copy, tmp_path, CC="false", CXX="false")
    python = _environment(tmp_path / "env", wheel)
    seen = _look(python, tmp_path)
    assert seen["backend"] == "reference"
    assert "C++ compiler" in seen["missing"]["cpp"]
    if os.environ.get("ELECTRA_FAST_TEST_ALL"):
        _check_install(python, tmp_path, "--reference")


@pytest.mark.skipif(os.name == "nt", reason="MSVC is found without CC and CXX")
def test_a_release_is_not_built_without_a_compiler(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy")
    command = [sys.executable, "-c", BUILD, "build_wheel", str(tmp_path)]
    settings = {"CC": "false", "CXX": "false", "ELECTRA_FAST_REQUIRE_EXTENSION": "1"}
    result = subprocess.run(
        command, cwd=tmp_path / "copy", env=os.environ | settings, capture_output=True, text=True, timeout=300
    )
    assert result.returncode != 0
    assert list(tmp_path.glob("*.whl")) == []


def _check_install(python: Path, cwd: Path, *options: str) -> None:
    """From outside of the checkout."""
    script = shutil.copy(ROOT / "tests" / "scripts" / "check_install.py", cwd)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [str(python), script, *options], cwd=cwd, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert " works on Python " in result.stdout


@needs_all
@pytest.mark.timeout(1500)
def test_the_installed_wheel_trains_a_model(wheel: Path, tmp_path: Path) -> None:
    _check_install(_environment(tmp_path / "env", wheel), tmp_path)


@needs_all
@pytest.mark.timeout(1500)
def test_checkout_and_sdist_build_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "copy")
    other = tmp_path / _build("build_wheel", tmp_path / "copy", tmp_path)
    assert other.name == wheel.name
    contents = [{name: file.read(name) for name in file.namelist()} for file in map(zipfile.ZipFile, (wheel, other))]
    assert contents[0].keys() == contents[1].keys()
    # RECORD lists the others; their order in it is the file system's.
    differs = [name for name, content in contents[0].items() if content != contents[1][name]]
    assert [name for name in differs if not name.endswith("/RECORD")] == []


def test_sdist_holds_what_builds_tests_and_explains(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout to compare with")
    absent = {name for name in listed.stdout.splitlines() if name not in names and (ROOT / name).is_file()}
    assert {name for name in absent if not name.startswith(".")} == set()  # but for git's and the workflows' files
    assert not any(name.endswith((".so", ".pyd", ".pyc")) for name in names)


@needs("twine")
def test_the_index_takes_the_metadata(sdist: Path, wheel: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@needs("auditwheel")
@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel is for Linux")
def test_the_wheel_needs_nothing_that_pytorch_does_not(wheel: Path) -> None:
    """Built by this machine's compiler, it may ask for a newer glibc than one from manylinux_2_28, but no library."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    assert re.search(r"manylinux_2_\d+_" + os.uname().machine, shown), shown
    libraries = set(re.findall(r"(lib\w[\w+-]*\.so[.\d]*) with versions", shown))
    assert libraries <= {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2"}


@needs("cibuildwheel")
@pytest.mark.parametrize(
    ("platform", "archs", "endings"),
    [
        ("linux", "x86_64,aarch64", {"manylinux_x86_64", "manylinux_aarch64"}),
        ("macos", "x86_64,arm64", {"macosx_x86_64", "macosx_arm64"}),
        ("windows", "AMD64", {"win_amd64"}),
    ],
)
def test_wheels_of_a_release(platform: str, archs: str, endings: set[str]) -> None:
    """What the configuration builds; building itself takes containers and those systems."""
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform]
    result = subprocess.run(
        [*command, "--archs", archs, str(ROOT)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    pythons = ("cp310", "cp311", "cp312", "cp313", "cp314")
    assert set(result.stdout.split()) == {f"{python}-{ending}" for python in pythons for ending in endings}


def test_what_a_release_runs_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (command,) = re.findall(r"^test-command = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    files = re.findall(r"tests/[\w/]+\.py", command)
    assert len(files) >= 2
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_publishing_needs_no_secret() -> None:
    folder = ROOT / ".github" / "workflows"
    if not folder.is_dir():
        pytest.skip("an sdist has no workflows")
    for file in folder.glob("*.yml"):
        text = file.read_text(encoding="utf-8")
        workflow = yaml.safe_load(text)
        assert "secrets." not in text
        assert workflow["permissions"] == {"contents": "read"}
        trusted = [name for name, job in workflow["jobs"].items() if "permissions" in job]
        assert trusted == (["publish"] if file.name == "release.yml" else [])
    publish = yaml.safe_load((folder / "release.yml").read_text(encoding="utf-8"))["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert not any("run" in step for step in publish["steps"])  # none of the project's code has that right


def test_a_checkout_runs_where_it_lies(tmp_path: Path) -> None:
    source = _copy(tmp_path)
    # In an environment of its own: an editable install would lend its compiled extension to any checkout.
    seen = _look(_environment(tmp_path / "env"), source)
    assert Path(seen["file"]) == source / "electra_fast" / "__init__.py"
    assert Path(seen["kernel"]) == source / "kernels" / "masking_sampling.py"
    assert seen["backend"] == "reference"

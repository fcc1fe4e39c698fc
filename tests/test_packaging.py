"""What a Space and a newcomer rely on: front matter, exact pins, the README's links and code."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.repocard import metadata_load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Where the import is not called like the package that brings it.
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "tokenizers": "transformers"}
ADDED_BY_THE_SPACE = {"spaces"}
ONLY_IF_THERE = {"moge"}  # used where the deployer has installed it
OWN = {"motionstream", "app", "paint", *(path.stem for path in (ROOT / "tests").glob("*.py"))}
TEXT = {".py", ".md", ".txt", ".toml", ".js", ".css", ".html", ".json", ".cfg", ".yml", ".yaml", ""}
NOT_OURS = {
    ".git",
    ".venv",
    ".gradio",
    ".hypothesis",
    ".pytest_cache",
    ".ruff_cache",
    "__pycache__",
    "runs",
    "data",
    "outputs",
}


def ours():
    """All files of the project."""
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in NOT_OURS]
        yield from (Path(folder, name) for name in files)


def pins(name):
    """Package -> version of a requirements file; every line must be an exact pin, or lead to another file."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        if line.startswith("-r "):
            found |= pins(line[3:])
        else:
            package, version = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9.]*)", line).groups()
            found[package] = version
    return found


def third_party(paths):
    """Package names imported anywhere in the given Python files."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
    names -= sys.stdlib_module_names | OWN | ADDED_BY_THE_SPACE | ONLY_IF_THERE
    return {PACKAGES.get(name, name.replace("_", "-")) for name in names}


def test_front_matter_is_a_space():
    card = metadata_load(ROOT / "README.md")
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert card["title"] == "MotionStream" and card["sdk"] == "gradio" and card["license"] == "apache-2.0"
    assert card["sdk_version"] == pins("requirements.txt")["gradio"]
    assert (ROOT / card["app_file"]).is_file()
    assert card["python_version"] in {"3.10", "3.11", "3.12"}
    assert {card["colorFrom"], card["colorTo"]} <= colours
    assert len(card["short_description"]) <= 60  # the Hub's limit
    assert card["suggested_hardware"] == "cpu-basic" and card["tags"] and card["pinned"] is False


def test_the_app_imports_only_what_is_pinned():
    app = [ROOT / "app.py", *(ROOT / "motionstream").rglob("*.py")]
    assert third_party(app) <= pins("requirements.txt").keys()


def test_tests_and_scripts_import_only_what_is_pinned():
    others = [path for folder in ("tests", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    scenes = {path.stem for path in (ROOT / "scripts").rglob("*.py")}
    assert third_party(others) - scenes <= pins("requirements-dev.txt").keys()


def test_no_flash_attention_nor_torchvision_is_required():
    assert not pins("requirements.txt").keys() & {"flash-attn", "torchvision", "torchaudio"}


def test_ci_runs_the_readmes_test_command():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test$", script.read_text(), re.MULTILINE) and re.search(
        r"^make test\b", README, re.MULTILINE
    )


def test_readme_is_complete():
    assert "⟦" not in README, "a figure is missing"
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]
    assert not missing


def test_readme_python_runs_as_written(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert (tmp_path / "boat.mp4").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("module", "chosen", "policy", "spins"),
    [
        ("app", {}, "PASSIVE", "1500"),
        ("motionstream, torch", {"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7"),
        ("motionstream, torch", {"OMP_WAIT_POLICY": "active"}, "ACTIVE", "30000000000"),
    ],
)
def test_threads_that_wait_soon_leave_the_cores_to_others_unless_told_otherwise(module, chosen, policy, spins):
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {name: value for name, value in os.environ.items() if name not in ours} | chosen
    environment["OMP_DISPLAY_ENV"] = "verbose"  # OpenMP says how it is set as it is loaded
    command = [sys.executable, "-c", f"import {module}"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        told = "".join(iter(process.stderr.readline, "OPENMP DISPLAY ENVIRONMENT END\n"))
        process.kill()
    said = dict(re.findall(r"(OMP_WAIT_POLICY|GOMP_SPINCOUNT) ?= ?'(\w+)'", told))
    assert said == {"OMP_WAIT_POLICY": policy, "GOMP_SPINCOUNT": spins}


@pytest.mark.parametrize(
    "pattern, meaning",
    [
        (r"(?<![\w.~}\])/-])/(?:root|work|home|Users|opt|mnt)/\w", "a path of one machine"),
        ("--(?:extra-)?index" + "-url|--find" + "-links", "a package registry"),
        (r"\b(?:10|172|192)\.\d+\.\d+\.\d+\b", "an address of a private network"),
        ("TO" + "DO|FIX" + "ME|X" + "XX", "a loose end"),
    ],
)
def test_nothing_of_one_machine_is_in_the_files(pattern, meaning):
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in ours()
        if path.suffix in TEXT and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, meaning

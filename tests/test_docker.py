"""The commands of the Dockerfiles, as far as they need neither Docker nor root, and the contents of the images.

The tests do not run useradd, userdel and install, which need root. They do not download the packages either: a stand-in
for uv lends this environment's packages to the scratch copy.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from recipes.models.smollm2 import find_uv
from recipes.running.run import check_writable

REPO_ROOT = Path(__file__).resolve().parents[1]
UV = find_uv()
DOCKER = REPO_ROOT / "docker"
DOCKERFILES = ("Dockerfile", "Dockerfile.cpu")
SITE_PACKAGES = Path(sys.prefix) / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
# The libraries of C and C++, which are part of the smallest Debian. Their packages have several names.
BASE_LIBRARIES = re.compile(r"^(libc6|libgcc-s1|libstdc\+\+6|gcc-\d+-base)$")

# Does everything as uv does it, except installing the packages: this environment lends its own.
LENDING_UV = f"""#!/bin/bash
if [[ "$1 $2 $*" == "pip install "*--requirement* ]]; then
    echo "$*" >>"$UV_CALLS"
    echo '{SITE_PACKAGES}' >.venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/lent.pth
else
    exec '{UV}' "$@"
fi
"""


def instructions(name: str) -> list[tuple[str, str]]:
    """The keyword and the text of each instruction, in order. Continued lines are joined."""
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in lines)]


def system_packages(name: str) -> list[str]:
    """The packages that a Dockerfile installs with apt-get."""
    (command,) = (rest for keyword, rest in instructions(name) if keyword == "RUN" and "apt-get install" in rest)
    (install,) = (part for part in command.split("&&") if "apt-get install" in part)
    return [word for word in install.split()[2:] if not word.startswith("--")]


def is_ignored(path: str) -> bool:
    """Whether .dockerignore leaves a path out. It has two kinds of patterns: for the top folder, and (**/) for any."""
    for pattern in (REPO_ROOT / ".dockerignore").read_text().splitlines():
        anywhere = pattern.startswith("**/")
        parts = path.split("/") if anywhere else path.split("/")[:1]
        if not pattern.startswith("#") and any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in parts):
            return True
    return False


def copy_into(folder: Path, sources: list[str], target: str) -> None:
    for source in sources:
        if source == ".":
            listed = subprocess.check_output(
                ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=REPO_ROOT, text=True
            )
            names = [name for name in listed.splitlines() if not is_ignored(name) and (REPO_ROOT / name).is_file()]
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPO_ROOT / name, folder / name)
        elif (REPO_ROOT / source).is_dir():
            shutil.copytree(REPO_ROOT / source, folder / target)
        else:
            (folder / target).mkdir(exist_ok=True)
            shutil.copy(REPO_ROOT / source, folder / target)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder in which the instructions of Dockerfile.cpu have run, and what each of its RUN lines printed."""
    base = tmp_path_factory.mktemp("image")
    folder, programs = base / "app", base / "programs"
    folder.mkdir()
    programs.mkdir()
    (programs / "uv").write_text(LENDING_UV)
    (programs / "uv").chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "UV_CALLS": str(base / "calls"), "PYTHON": sys.executable,
    }  # fmt: skip
    environment.pop("VIRTUAL_ENV", None)
    printed = []
    for keyword, rest in instructions("Dockerfile.cpu"):
        if keyword == "COPY":
            *sources, target = [word for word in rest.split() if not word.startswith("--")]
            copy_into(folder, sources, target)
        elif keyword == "RUN" and not re.match("apt-get|useradd", rest):
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", rest], cwd=folder, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{rest}\n{done.stdout}{done.stderr}"
            printed.append(done.stdout)
    assert "--requirement=requirements/cpu.txt" in (base / "calls").read_text()
    return folder, printed


@pytest.mark.slow
def test_the_packages_install_from_what_was_copied_before_the_code_and_stay_good_with_it(
    built: tuple[Path, list[str]],
) -> None:
    _, (install, check) = built
    assert "packages (cpu)" in install and "import check" in install
    assert check == ""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["scripts/evaluate.py", "data_tools/generate_dataset.py", "scripts/train_grpo.sh"])
def test_what_the_image_holds_is_enough_to_run(built: tuple[Path, list[str]], script: str) -> None:
    folder, _ = built
    assert not (folder / "tests").exists() and not (folder / ".git").exists()
    command = ["bash", "-n", script] if script.endswith(".sh") else [folder / ".venv/bin/python", script, "--help"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = "import reward, sys; print(reward.__path__[0])"
    where = subprocess.check_output([folder / ".venv/bin/python", "-c", code], cwd="/", text=True)
    assert where.strip() == str(folder / "reward")


needs_apt = pytest.mark.skipif(
    shutil.which("apt-get") is None or not list(Path("/var/lib/apt/lists").glob("*_Packages*")),
    reason="needs the apt of Debian or Ubuntu with its package lists",
)


@needs_apt
@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_system_packages_exist(name: str) -> None:
    command = ["apt-get", "install", "--simulate", "--yes", "--no-install-recommends", *system_packages(name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_apt
def test_every_system_library_of_sumo_and_vllm_is_in_the_images() -> None:
    binaries = [SITE_PACKAGES / "sumo/bin/sumo", SITE_PACKAGES / "sumo/bin/netconvert"]
    binaries += [*SITE_PACKAGES.glob("libsumo/*.so"), *SITE_PACKAGES.glob("vllm/_C*.so")]
    assert len(binaries) > 3
    libraries = set()
    for binary in binaries:
        listed = subprocess.run(["ldd", binary], capture_output=True, text=True).stdout
        libraries |= set(re.findall(r"=> ((?:/usr)?/lib/\S+)", listed))
    # By file name: /lib is a link to /usr/lib, and a package may name either.
    patterns = [f"*/{Path(library).name}" for library in libraries]
    owners = set(re.findall(r"^([^:]+):", subprocess.check_output(["dpkg", "-S", *patterns], text=True), re.MULTILINE))
    wanted = {owner for owner in owners if not BASE_LIBRARIES.match(owner)}
    assert "libgl1" in wanted
    for name in DOCKERFILES:
        options = ["--recurse", "--installed", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"]
        options += ["--no-replaces", "--no-enhances"]
        depends = subprocess.check_output(["apt-cache", "depends", *options, *system_packages(name)], text=True)
        assert wanted <= set(re.findall(r"^(\S+?)(?::\w+)?$", depends, flags=re.MULTILINE))


def test_the_gpu_set_has_a_wheel_of_every_package_for_the_images_python_and_glibc(tmp_path: Path) -> None:
    command = [str(UV), "pip", "install", "--dry-run", "--no-deps", "--target", str(tmp_path)]
    command += ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_39"]
    command += ["--requirement", "requirements/gpu.txt"]
    # One package has no wheel. It is pure Python, so it builds without a compiler.
    command += ["--only-binary", ":all:", "--no-binary", "antlr4-python3-runtime"]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " + vllm==" in done.stderr


def refusal_as_another_user(place: Path, folder: str) -> str:
    """What check_writable says of the folder below `place` to a user who is not root."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(1000)
                os.setuid(1000)
            os.chdir(place)
            check_writable(Path(folder))
        except BaseException as error:
            said = str(error)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


def test_a_mounted_folder_of_another_user_is_reported_before_anything_is_made() -> None:
    # Not in pytest's folder: root must run this as another user, who cannot enter it.
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "runs").mkdir(mode=0o555)
        (place / "ours").mkdir()
        (place / "ours").chmod(0o777)
        assert refusal_as_another_user(place, "ours/demo") == ""
        refusal = refusal_as_another_user(place, "runs/demo/grpo")
        assert "cannot write in runs, where runs/demo/grpo is to lie" in refusal


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_images_are_pinned_run_without_root_and_keep_no_cache(name: str) -> None:
    steps = instructions(name)
    (base,) = (rest for keyword, rest in steps if keyword == "FROM")
    assert re.search(r":\d+\.\d+\.\d+-", base)
    assert [rest for keyword, rest in steps if keyword == "USER"] == ["1000:1000"]
    runs = [rest for keyword, rest in steps if keyword == "RUN"]
    assert all("rm -rf /var/lib/apt/lists/*" in run for run in runs if "apt-get" in run)
    assert any("UV_NO_CACHE=1" in run and "rm -rf .uv" in run for run in runs)
    assert not re.search(r"https?://", "\n".join(rest for _, rest in steps))


def test_compose_fits_its_schema_and_names_only_knobs_of_the_launcher() -> None:
    subprocess.run(
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker/compose.yaml"],
        cwd=REPO_ROOT,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        check=True,
    )
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    knobs = (REPO_ROOT / "scripts/train_grpo.sh").read_text()
    for service in services.values():
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        for name in service["environment"]:
            assert f"{name}=${{{name}:-" in knobs or name in ("HF_TOKEN", "WANDB_API_KEY")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_models_from_the_hub_land_in_a_folder_of_the_host(name: str) -> None:
    (variables,) = (rest for keyword, rest in instructions(name) if keyword == "ENV")
    (hub,) = re.findall(r"\bHF_HOME=(\S+)", variables)
    for service in yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"].values():
        assert any(hub.startswith(volume.split(":")[1] + "/") for volume in service["volumes"])

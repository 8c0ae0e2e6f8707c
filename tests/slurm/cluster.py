"""A real Slurm on loopback from the distribution's packages, for the tests.

    python -m tests.slurm.cluster install        the packages (Debian, as root)
    python -m tests.slurm.cluster up ROOT        starts it; prints what to export
    python -m tests.slurm.cluster down ROOT      stops what `up` started and nothing else

One node with two pretended GPUs; the partition `main` preempts the partition `scavenge`, whose jobs
are queued again. With accounting: slurmdbd on MariaDB. Everything lies below ROOT and listens on
127.0.0.1 only; the machine's own configuration is neither read nor written.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ACCOUNTING_PACKAGES = ("slurmdbd", "slurm-wlm-mysql-plugin", "mariadb-server")
GPUS = 2
CPUS = 4  # told to Slurm, whatever the machine has: jobs of the tests mostly wait
_MEMORY_MB = 8000
_START_SECONDS = 90
_SOCKET_LIMIT = 100  # characters of a Unix socket's path, with some room


def missing_programs(*, accounting: bool = True) -> list[str]:
    """What is not installed of the programs that a cluster needs."""
    needed = ["munged", "slurmctld", "slurmd", "sbatch"]
    needed += ["slurmdbd", "mariadbd", "sacctmgr"] if accounting else []
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return [name for name in needed if shutil.which(name, path=path) is None]


def install() -> None:
    """Installs the packages; services are not started, this module starts its own daemons."""
    if not missing_programs():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment)
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends"]
        subprocess.run(
            [*command, *PACKAGES, *ACCOUNTING_PACKAGES],
            check=True,
            env=environment,
            stdout=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Debian asks policy-rc.d whether a package may start its service: here it may not."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, below those that the system hands out by itself."""
    found: list[int] = []
    for port in random.sample(range(20000, 32000), k=200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports between 20000 and 32000")


@dataclass
class Cluster:
    """The daemons and their folder."""

    root: Path
    accounting: bool = True
    max_array_size: int = 1001
    cpus: int = CPUS
    started: dict[str, int] = field(default_factory=dict)  # daemon -> process

    def __post_init__(self) -> None:
        if len(str(self.socket)) > _SOCKET_LIMIT:
            raise ValueError(f"{self.root}: too long for a Unix socket; give a shorter folder")

    @property
    def socket(self) -> Path:
        return self.root / "munge" / "socket"

    @property
    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster."""
        return {"SLURM_CONF": str(self.root / "etc" / "slurm.conf")}

    # life ------------------------------------------------------------------------------------

    def up(self) -> None:
        """Starts everything and waits until the node is idle."""
        missing = missing_programs(accounting=self.accounting)
        if missing:
            raise RuntimeError(f"not installed: {', '.join(missing)}; make test-slurm installs it")
        for name in ("etc", "log", "pids", "state", "spool", "munge", "mysql"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        self.socket.parent.chmod(0o755)
        _name_this_host()
        self._configure()
        try:
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self.start_controller()
            self.start_node()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Cancels all jobs, then stops what was started, last first."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--user", _user(), timeout=10)
            wait_until(lambda: not self.run("squeue", "-h", timeout=10), seconds=20)
        for name in reversed(list(self.started)):
            self.stop(name)

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM) -> None:
        """Stops one daemon, if it is still the process that was started."""
        pid = self.started.pop(name, None)
        if pid is None or not _is(pid, name):
            return
        os.kill(pid, how)
        try:
            wait_until(lambda: not _is(pid, name), seconds=30)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not _is(pid, name), seconds=30)

    # daemons ---------------------------------------------------------------------------------

    def _configure(self) -> None:
        self._ports = free_ports(4)
        etc = self.root / "etc"
        (etc / "slurm.conf").write_text(self._slurm_conf())
        (etc / "cgroup.conf").write_text("CgroupPlugin=autodetect\nConstrainCores=no\n")
        lines = []
        for index, source in enumerate(("/dev/null", "/dev/zero")[:GPUS]):
            device = etc / f"gpu{index}"  # slurmd only looks whether it is a device
            with contextlib.suppress(OSError):
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            if not device.exists():
                device.symlink_to(source)
            lines.append(f"NodeName={_host()} Name=gpu File={device}\n")
        (etc / "gres.conf").write_text("".join(lines))

    def _slurm_conf(self) -> str:
        controller, node, accounting, _ = self._ports
        settings = {
            "ClusterName": "segbench",
            "SlurmctldHost": f"{_host()}(127.0.0.1)",
            "SlurmctldPort": controller,
            "SlurmdPort": node,
            "SlurmUser": _user(),
            "SlurmdUser": _user(),
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.socket}",
            "CredType": "cred/munge",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
            "SlurmctldPidFile": self._pid_file("slurmctld"),
            "SlurmdPidFile": self._pid_file("slurmd"),
            "SlurmctldLogFile": self.root / "log" / "slurmctld.log",
            "SlurmdLogFile": self.root / "log" / "slurmd.log",
            "StateSaveLocation": self.root / "state",
            "SlurmdSpoolDir": self.root / "spool",
            "SlurmdParameters": "config_overrides",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "ReturnToService": 2,
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "bf_interval=2,sched_interval=2,sched_min_interval=0,"
            "batch_sched_delay=0,defer_batch=0",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "SlurmctldParameters": "preempt_send_user_signal",
            "SlurmdTimeout": 20,
            "KillWait": 5,
            "MinJobAge": 300,
            "JobRequeue": 1,
            "GresTypes": "gpu",
            "MaxArraySize": self.max_array_size,
        }
        if self.accounting:
            settings |= {
                "AccountingStorageType": "accounting_storage/slurmdbd",
                "AccountingStorageHost": "127.0.0.1",
                "AccountingStoragePort": accounting,
                "AccountingStoragePass": self.socket,
            }
        else:
            settings["AccountingStorageType"] = "accounting_storage/none"
        lines = [f"{key}={value}" for key, value in settings.items()]
        lines.append(
            f"NodeName={_host()} NodeAddr=127.0.0.1 CPUs={self.cpus} RealMemory={_MEMORY_MB} "
            f"Gres=gpu:{GPUS} State=UNKNOWN"
        )
        shared = f"Nodes={_host()} MaxTime=INFINITE State=UP DefMemPerCPU=100"
        lines.append(f"PartitionName=main {shared} Default=YES PriorityTier=10 PreemptMode=OFF")
        lines.append(
            f"PartitionName=scavenge {shared} PriorityTier=1 PreemptMode=REQUEUE GraceTime=30"
        )
        return "\n".join(lines) + "\n"

    def _start_munge(self) -> None:
        key = self.root / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._launch(
            "munged",
            f"--socket={self.socket}",
            f"--key-file={key}",
            f"--pid-file={self._pid_file('munged')}",
            f"--seed-file={self.root / 'munge' / 'seed'}",
            f"--log-file={self.root / 'log' / 'munged.log'}",
            ready=lambda: self.run("munge", f"--socket={self.socket}", "-n"),
        )

    def _start_accounting(self) -> None:
        *_, port, database_port = self._ports
        mysql = self.root / "mysql"
        data, access = mysql / "data", mysql / "socket"
        self.run(
            "mariadb-install-db",
            "--no-defaults",
            f"--user={_user()}",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            timeout=_START_SECONDS,
        )
        client = ("--no-defaults", f"--socket={access}", "-uroot")
        self._launch(
            "mariadbd",
            "--no-defaults",
            f"--user={_user()}",
            f"--datadir={data}",
            f"--socket={access}",
            f"--pid-file={self._pid_file('mariadbd')}",
            "--bind-address=127.0.0.1",
            f"--port={database_port}",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=16M",
            "--innodb-lock-wait-timeout=900",
            "--innodb-flush-log-at-trx-commit=2",
            ready=lambda: self.run("mariadb-admin", *client, "ping"),
        )
        self.run(
            "mariadb",
            *client,
            "-e",
            "CREATE DATABASE accounting; CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm'; "
            "GRANT ALL ON accounting.* TO 'slurm'@'127.0.0.1';",
        )
        settings = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.socket}",
            "DbdHost": _host(),
            "DbdAddr": "127.0.0.1",
            "DbdPort": port,
            "SlurmUser": _user(),
            "LogFile": self.root / "log" / "slurmdbd.log",
            "PidFile": self._pid_file("slurmdbd"),
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": database_port,
            "StorageUser": "slurm",
            "StoragePass": "slurm",
            "StorageLoc": "accounting",
            "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        }
        path = self.root / "etc" / "slurmdbd.conf"
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        path.chmod(0o600)
        self._launch("slurmdbd", ready=lambda: self.run("sacctmgr", "-n", "show", "cluster"))
        self.run("sacctmgr", "-i", "add", "cluster", "segbench", timeout=60)

    def start_controller(self) -> None:
        self._launch("slurmctld", ready=lambda: "UP" in self.run("scontrol", "ping"))

    def start_node(self) -> None:
        self._launch("slurmd", "-N", _host(), ready=lambda: self.node_state() in ("idle", "mixed"))

    def node_state(self) -> str:
        return self.run("sinfo", "-h", "-p", "main", "-o", "%T").strip()

    def _launch(self, name: str, *arguments: str, ready: Callable[[], object]) -> None:
        environment = {**os.environ, **self.environment, "PATH": _path()}
        with (self.root / "log" / f"{name}.out").open("ab") as out:
            subprocess.Popen(
                [name, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
            )

        def is_ready() -> bool:
            try:
                return bool(ready()) or ready() == ""
            except (OSError, subprocess.SubprocessError):
                return False

        try:
            wait_until(is_ready, seconds=_START_SECONDS)
        except TimeoutError as error:
            raise RuntimeError(f"{name} does not come up\n{self.logs()}") from error
        self.started[name] = int(Path(self._pid_file(name)).read_text())

    def _pid_file(self, name: str) -> str:
        return str(self.root / "pids" / f"{name}.pid")

    def run(self, *command: str, timeout: float = 20) -> str:
        """The output of one of the cluster's commands."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment, "PATH": _path()},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        return done.stdout

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        parts = []
        for path in sorted((self.root / "log").iterdir()):
            lines = path.read_text(errors="replace").splitlines()[-15:]
            parts.append("\n".join([f"== {path}", *lines]))
        return "\n".join(parts)


def wait_until(
    condition: Callable[[], object], *, seconds: float, poll_seconds: float = 0.1
) -> None:
    """Waits for a condition.

    Raises:
        TimeoutError: it did not come true.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not true within {seconds} s")
        time.sleep(poll_seconds)


def _is(pid: int, name: str) -> bool:
    """Whether a process runs that program: a number may be another's by now."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" and Path(words[0].decode()).name == name


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _name_this_host() -> None:
    """Slurm looks the short host name up; a machine may not know its own."""
    try:
        socket.gethostbyname(_host())
    except OSError:
        with Path("/etc/hosts").open("a") as stream:
            stream.write(f"127.0.0.1 {_host()}\n")


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _path(environment: Mapping[str, str] = os.environ) -> str:
    return environment.get("PATH", "") + ":/usr/sbin:/sbin"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster")
    parser.add_argument("what", choices=("install", "up", "down"))
    parser.add_argument("root", nargs="?", type=Path, default=Path("/tmp/segbench-slurm"))
    parser.add_argument("--no-accounting", action="store_true")
    options = parser.parse_args()
    if options.what == "install":
        install()
        return 0
    cluster = Cluster(options.root, accounting=not options.no_accounting)
    if options.what == "up":
        cluster.up()
        for key, value in cluster.environment.items():
            sys.stdout.write(f"export {key}={value}\n")
        return 0
    for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"):
        path = cluster.root / "pids" / f"{name}.pid"
        if path.exists():
            cluster.started[name] = int(path.read_text())
    cluster.down()
    shutil.rmtree(cluster.root)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The Slurm launcher, with submitit's local executor and on a real cluster of one node: the same numbers as local."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from segbench import store
from segbench.config_file import load_config
from segbench.errors import UserError
from segbench.sweep.run import run_sweep
from tests.conftest import ROOT, until
from tests.test_sweep import all_same, in_terminal, in_training, slow_sweep, sweep

pytest.importorskip("submitit", reason="submitit is not installed; pip install 'segbench[slurm]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LOCAL = {"launcher": "slurm", "slurm": {"cluster": "local"}}
REAL = {"launcher": "slurm", "jobs": None, "checkpoint_minutes": 1e-9}


def steps(folder):
    return [store.newest_checkpoint(run)[0] for run in folder.glob("*-s*")]


def left(folder):
    """What the jobs left beside the runs."""
    return {p.name for name in ("slurm", ".locks") for p in (folder / name).rglob("*")}


# submitit's local executor


def test_no_result_is_read_that_lay_there_before(make_config, monkeypatch):
    """Results are unpickled, so their folder has to be new and the user's own."""
    config = make_config(launch=LOCAL)
    monkeypatch.setattr("secrets.token_hex", lambda n: "guessed")
    place = Path(config.runs_dir) / "tiny" / "slurm"
    (place / f"{time.strftime('%Y%m%d')}-guessed").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot write .*guessed: File exists"):
        run_sweep(config, Console(file=io.StringIO()))


def test_ctrl_c_saves_the_state_and_the_same_command_goes_on(write_sweep, tmp_path):
    path = write_sweep(**slow_sweep(tmp_path), launch=LOCAL)
    process = in_terminal([sys.executable, "-m", "segbench.cli", "sweep", str(path)])
    folder = tmp_path / "runs" / "tiny"
    until(lambda: in_training(tmp_path, 2))
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert {json.loads(p.read_text())["state"] for p in folder.glob("*/status.json")} == {"stopped"}
    assert min(steps(folder)) > 0
    assert left(folder) == set()
    (tmp_path / "go").touch()
    results, code, _ = sweep(load_config(path))
    assert code == 0
    assert left(folder) == set()
    other = [f"runs_dir={tmp_path / 'other'}", "launch.launcher=local", "launch.jobs=2"]
    assert all_same(results, sweep(load_config(path, other))[0])


def pid(folder):
    """Of the cohort's process."""
    return json.loads(next(folder.glob("Slow-s0-*/status.json")).read_text())["pid"]


def job_process(folder):
    """submitit's process of the job."""
    return next(p for p in psutil.Process(pid(folder)).parents() if "submitit.core._submit" in p.cmdline())


def test_a_job_that_slurm_warns_saves_its_state_and_is_started_again(make_config, tmp_path):
    changes = slow_sweep(tmp_path, seeds=[0])
    config = make_config(**changes, name="slurm", launch=LOCAL | {"checkpoint_minutes": 1000})
    folder, seen = Path(config.runs_dir) / "slurm", []

    def warn():
        until(lambda: in_training(tmp_path, 1))
        process, before = job_process(folder), pid(folder)
        process.send_signal(signal.SIGUSR2)
        process.wait(60)
        seen.extend(steps(folder))
        until(lambda: pid(folder) != before)
        seen.append("again")
        (tmp_path / "go").touch()

    thread = threading.Thread(target=warn)
    thread.start()
    results, code, out = sweep(config)
    thread.join()
    assert code == 0, out
    assert min(seen[:2]) > 0
    assert seen[2] == "again"
    assert all_same(results, sweep(make_config(**changes, name="local"))[0])


def test_a_job_that_is_killed_is_reported_with_what_it_printed_and_tried_again_in_parts(make_config, tmp_path):
    config = make_config(**slow_sweep(tmp_path), launch=LOCAL)
    folder = Path(config.runs_dir) / "tiny"

    def kill():
        until(lambda: in_training(tmp_path, 2))
        job_process(folder).kill()
        (tmp_path / "go").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    results, code, out = sweep(config)
    thread.join()
    assert code == 0
    assert {seed for _, seed in results} == {0, 1}
    assert "ended without a result" in out
    assert Path(out.partition("what it printed is in ")[2].split(" seed ")[0].strip()).exists()


def test_without_slurm_it_says_so(make_config, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UserError, match="are you indeed on a slurm cluster"):
        run_sweep(make_config(launch={"launcher": "slurm"}), Console(file=io.StringIO()))


def test_a_slurm_that_refuses_the_jobs_is_quoted_and_nothing_stays(make_config, monkeypatch, tmp_path):
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'invalid partition specified: gpu' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = make_config(launch={"launcher": "slurm", "slurm": {"partition": "gpu"}})
    with pytest.raises(UserError, match="launch.slurm: .*invalid partition specified: gpu"):
        run_sweep(config, Console(file=io.StringIO()))
    assert left(Path(config.runs_dir) / "tiny") == set()


QUEUE = {
    "sbatch": "echo Submitted batch job 7",
    "squeue": "echo >> {0}/asked; cat {0}/states",
    "scancel": "echo $* >> {0}/cancelled; echo '7_0 CANCELLED' > {0}/states; echo '7_1 CANCELLED' >> {0}/states",
    "srun": "",
}


@pytest.fixture
def queue(monkeypatch, tmp_path):
    """Slurm's commands, which say what is in ``states``, and start nothing."""
    for name, script in QUEUE.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script.format(tmp_path)}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("RESULT_S", "POLL_S"):
        monkeypatch.setattr(f"segbench.launch.slurm.{name}", 0.5)
    return tmp_path


def test_how_slurm_calls_the_end_of_a_job_is_told(make_config, queue):
    (queue / "states").write_text("7_0 OUT_OF_MEMORY\n7_1 NODE_FAIL\n")  # of the third it knows nothing
    config = make_config(decoders=["nearest"], seeds=[0, 1, 2], launch={"launcher": "slurm", "jobs": None})
    _, code, out = sweep(config)
    assert code == 1
    assert "failed nearest-s0: out of memory" in out
    assert "failed nearest-s1: its job 7_1 ended without a result (NODE_FAIL)" in out
    assert "failed nearest-s2: its job 7_2 ended without a result (gone)" in out


def test_no_answer_of_slurm_s_is_no_end_and_ctrl_c_empties_the_queue(write_sweep, queue):
    path = write_sweep(decoders=["nearest"], seeds=[0, 1], launch={"launcher": "slurm", "jobs": None})
    process = in_terminal([sys.executable, "-m", "segbench.cli", "sweep", str(path)])
    folder = queue / "runs" / "tiny"
    until(lambda: list(folder.glob("slurm/*/*submitted.pkl")))
    until(lambda: (queue / "asked").exists() and len((queue / "asked").read_text()) >= 3)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert (queue / "cancelled").read_text() == "--state=PENDING 7\n--signal=TERM 7\n"
    assert left(folder) == set()


def test_ctrl_c_while_the_jobs_are_submitted_takes_them_all_back(write_sweep, queue):
    (queue / "sbatch").write_text("#!/bin/sh\nkill -INT $PPID\nsleep 1\necho Submitted batch job 7\n")
    path = write_sweep(decoders=["nearest"], seeds=[0, 1], launch={"launcher": "slurm", "jobs": None})
    process = in_terminal([sys.executable, "-m", "segbench.cli", "sweep", str(path)])
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert (queue / "cancelled").read_text() == "--state=PENDING 7\n--signal=TERM 7\n"
    assert left(queue / "runs" / "tiny") == set()


# A real Slurm

CONF = """\
ClusterName=segbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port1}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def cluster():
    """A Slurm of one node on this machine: Debian's packages slurm-wlm and munge, started by this user in a folder."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; apt-get install slurm-wlm munge")
    if os.getuid() != 0:
        pytest.skip("slurmd starts jobs for others, and so only for root")
    folder = Path("/tmp") / f"segbench-slurm-{os.getpid()}"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        ports = {"port": a.getsockname()[1], "port1": b.getsockname()[1]}
    conf = CONF.format(folder=folder, host=socket.gethostname(), cpus=os.cpu_count(), **ports)
    (folder / "slurm.conf").write_text(conf)
    (folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
    environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT)}
    os.environ.update(environment)
    munge = {"key-file": "key", "socket": "munge.socket", "pid-file": "munged.pid", "log-file": "munged.log"}
    munge["seed-file"] = "munged.seed"
    daemons = [
        ["munged", "--force", "--foreground", *(f"--{name}={folder / file}" for name, file in munge.items())],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D"],
    ]
    processes = []
    try:
        for command in daemons:
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            if command[0] == "munged":
                until((folder / "munge.socket").exists, 30)
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h"], capture_output=True, text=True, check=False).stdout:
            if time.monotonic() > deadline:
                log = (folder / "slurmd.log").read_text().splitlines()[-3:]
                pytest.skip(f"no node of Slurm comes up on this machine: {' | '.join(log)}")
            time.sleep(0.5)
        yield
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
        for name in environment:
            del os.environ[name]
        shutil.rmtree(folder, ignore_errors=True)


def squeue():
    return subprocess.run(["squeue", "-h", "-r", "-o", "%i %T"], capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("cluster")
def test_a_real_slurm_gives_the_same_though_a_job_is_preempted_and_another_requeued(make_config, tmp_path):
    """One job gets Slurm's signals of a preemption; of the other the node is lost, as far as Slurm knows."""
    changes = slow_sweep(tmp_path)
    config = make_config(**changes, name="real", launch=REAL)
    folder = Path(config.runs_dir) / "real"
    seen = []

    def disturb():
        until(lambda: len(steps(folder)) == 4 and min(steps(folder)) > 2)
        first, second = sorted(line.split()[0] for line in squeue().splitlines())
        subprocess.run(["scancel", "--signal=TERM", first], check=True)
        subprocess.run(["scancel", "--signal=USR2", first], check=True)
        subprocess.run(["scontrol", "requeue", second], check=True)
        until(lambda: squeue().count("PENDING") == 2)
        seen.extend(steps(folder))
        (tmp_path / "go").touch()
        for job in (first, second):
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)

    thread = threading.Thread(target=disturb)
    thread.start()
    results, code, out = sweep(config)
    thread.join()
    assert code == 0, out
    assert all_same(results, sweep(make_config(**changes, name="local"))[0])
    assert min(seen) > 2
    assert left(folder) == set()


@pytest.mark.usefixtures("cluster")
def test_ctrl_c_takes_the_jobs_out_of_the_queue(write_sweep, tmp_path):
    """Those that run save their state; those that wait never start."""
    path = write_sweep(**slow_sweep(tmp_path, seeds=[0, 1, 2]), launch=REAL | {"threads": 2})
    process = in_terminal([sys.executable, "-m", "segbench.cli", "sweep", str(path)])
    folder = tmp_path / "runs" / "tiny"
    until(lambda: any(steps(folder)))
    assert "PENDING" in squeue()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    until(lambda: squeue() == "")
    states = [json.loads(p.read_text())["state"] for p in folder.glob("*/status.json")]
    assert states == ["stopped", "stopped"]
    assert left(folder) == set()


@pytest.mark.usefixtures("cluster")
def test_the_jobs_of_a_killed_runner_go_on_and_the_same_command_waits_for_them(write_sweep, tmp_path):
    path = write_sweep(**slow_sweep(tmp_path, seeds=[0]), launch=REAL)
    process = in_terminal([sys.executable, "-m", "segbench.cli", "sweep", str(path)])
    until(lambda: in_training(tmp_path, 1))
    process.kill()
    process.communicate()
    again = in_terminal([sys.executable, "-m", "segbench.cli", "sweep", str(path)])
    time.sleep(5)
    assert again.poll() is None
    (tmp_path / "go").touch()
    _, err = again.communicate(timeout=100)
    assert again.returncode == 0, err
    assert len(set((tmp_path / "steps").read_text().split())) == 1  # one process did all of it
    results, _, _ = sweep(load_config(path))
    other = [f"runs_dir={tmp_path / 'other'}", "launch.launcher=local"]
    assert all_same(results, sweep(load_config(path, other))[0])

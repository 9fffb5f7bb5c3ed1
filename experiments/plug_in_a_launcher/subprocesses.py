"""A launcher in one file: each cohort is a plain `python THIS_FILE FOLDER`; files in FOLDER say the rest."""

import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from segbench.errors import Failure
from segbench.launch.base import Launcher, Progress
from segbench.outcomes import Ended, Lost
from segbench.runs import Cohort


@dataclass
class Child:
    process: subprocess.Popen
    folder: Path
    cohort: Cohort
    said: bytes = b""


class Subprocesses(Launcher):
    """Cohorts as subprocesses, nice ones where asked."""

    def __init__(self, cohorts, launch, jobs, threads, nice: int = 0):
        super().__init__(cohorts, launch, jobs, threads)
        self.nice = nice

    @contextmanager
    def opened(self):
        with tempfile.TemporaryDirectory(prefix="segbench-") as self.folder:
            yield

    def start(self, cohort, place):
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        (folder / "cohort").write_bytes(pickle.dumps((cohort, self.threads)))
        command = ["nice", f"-n{self.nice}", sys.executable, __file__, str(folder)]
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        return Child(subprocess.Popen(command, env=os.environ | path, start_new_session=True), folder, cohort)

    def poll(self, child):
        code = child.process.poll()
        if (child.folder / "ended").exists() and code is not None:
            return pickle.loads((child.folder / "ended").read_bytes())
        if code is not None:
            return Ended.alike(child.cohort, Lost(Failure(f"the subprocess ended with {code}")))
        said = (child.folder / "progress").read_bytes() if (child.folder / "progress").exists() else b""
        said, child.said = (said if said != child.said else b""), said
        return Progress(*pickle.loads(said)) if said else None

    def stop(self, child):
        (child.folder / "stop").touch()

    def kill(self, child):
        child.process.kill()


def main(folder: Path) -> None:
    from segbench.training.work import work

    def write(name, value):
        (folder / "new").write_bytes(pickle.dumps(value))
        (folder / "new").rename(folder / name)

    cohort, threads = pickle.loads((folder / "cohort").read_bytes())
    write("ended", work(cohort, threads, lambda *p: write("progress", p), (folder / "stop").exists))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
